package function

import (
	"sync"

	"thaw/protocol"
)

var hooks struct {
	mutex sync.Mutex
	named map[string][]func() error
}

// BeforeSnapshot registers what is to be done before the instance is snapshotted, such as closing connections. An error
// prevents the snapshot.
func BeforeSnapshot(hook func() error) { addHook("before_snapshot", hook) }

// AfterRestore registers what is to be done after the instance was restored from a snapshot, such as opening them again.
func AfterRestore(hook func() error) { addHook("after_restore", hook) }

func addHook(name string, hook func() error) {
	hooks.mutex.Lock()
	defer hooks.mutex.Unlock()
	if hooks.named == nil {
		hooks.named = map[string][]func() error{}
	}
	hooks.named[name] = append(hooks.named[name], hook)
}

func runHooks(name string) (failure *protocol.Failure) {
	hooks.mutex.Lock()
	registered := hooks.named[name]
	hooks.mutex.Unlock()
	defer func() {
		if reason := recover(); reason != nil {
			description := panicked(reason)
			failure = &description
		}
	}()
	for _, hook := range registered {
		if err := hook(); err != nil {
			description := failed(err)
			return &description
		}
	}
	return nil
}
