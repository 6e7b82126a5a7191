package function

import (
	"encoding/binary"
	"math/rand"
	"os"
	"sync"

	"thaw/protocol"
)

var hooks struct {
	mutex sync.Mutex
	named map[string][]func() error
}

// BeforeSnapshot registers what is to be done before the instance is snapshotted, such as closing connections. An error
// prevents the snapshot.
func BeforeSnapshot(hook func() error) { addHook(protocol.BeforeSnapshot, hook) }

// AfterRestore registers what is to be done after the instance was restored from a snapshot, such as opening them again.
func AfterRestore(hook func() error) { addHook(protocol.AfterRestore, hook) }

func addHook(name string, hook func() error) {
	hooks.mutex.Lock()
	defer hooks.mutex.Unlock()
	if hooks.named == nil {
		hooks.named = map[string][]func() error{}
	}
	hooks.named[name] = append(hooks.named[name], hook)
}

func runHooks(hook protocol.Hook) (failure *protocol.Failure) {
	if hook.Name == protocol.AfterRestore {
		wake(hook)
	}
	hooks.mutex.Lock()
	registered := hooks.named[hook.Name]
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

// wake gives a copy what is its own. Package math/rand takes a seed in modules for Go before 1.24; the generator of math/rand/v2
// takes none. What must not repeat comes from crypto/rand.
func wake(hook protocol.Hook) {
	for name, value := range hook.Env {
		_ = os.Setenv(name, value)
	}
	if len(hook.Entropy) >= 8 {
		rand.Seed(int64(binary.LittleEndian.Uint64(hook.Entropy)))
	}
}
