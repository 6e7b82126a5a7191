package process

import (
	"os"

	"thaw/agent/internal/connect"
)

// wires are the two ends of everything between the agent and a new process.
type wires struct {
	child [3]*os.File
	own   []*os.File
}

// connectWires makes a terminal or pipes, and gives the agent's ends to p.
func connectWires(spec *Spec, p *Process) (*wires, error) {
	w := &wires{}
	if err := w.connect(spec, p); err != nil {
		w.closeChildEnds()
		w.closeOwnEnds()
		return nil, err
	}
	return w, nil
}

func (w *wires) connect(spec *Spec, p *Process) error {
	if spec.PTY != nil {
		return w.connectTerminal(spec, p)
	}
	if spec.Stdin {
		read, write, err := os.Pipe()
		if err != nil {
			return pipeError(err)
		}
		w.child[0], w.own = read, append(w.own, write)
		p.input.open(write, false)
	} else {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return pipeError(err)
		}
		w.child[0] = null
		p.input.open(nil, false)
	}
	for channel := stdout; channel <= stderr; channel++ {
		read, write, err := os.Pipe()
		if err != nil {
			return pipeError(err)
		}
		w.child[channel+1], w.own = write, append(w.own, read)
		p.outputs[channel].source, p.outputs[channel].open = read, true
	}
	return nil
}

func (w *wires) connectTerminal(spec *Spec, p *Process) error {
	master, slave, err := openTerminal()
	if err != nil {
		return connect.Errorf(connect.ResourceExhausted, "the sandbox gave no terminal (/dev/ptmx): %v", err)
	}
	w.child = [3]*os.File{slave, slave, slave}
	w.own = append(w.own, master)
	if err := resize(master, spec.PTY.Size); err != nil {
		return err
	}
	// Programs open their terminal again by its name (/dev/tty, ttyname).
	if os.Geteuid() == 0 {
		_ = slave.Chown(int(spec.User.UID), int(spec.User.GID))
	}
	p.terminal = master
	p.input.open(master, true)
	p.outputs[tty].source, p.outputs[tty].open = master, true
	return nil
}

func pipeError(err error) error {
	return connect.Errorf(connect.ResourceExhausted, "the agent cannot open more files: %v", err)
}

func (w *wires) descriptors() []uintptr {
	files := make([]uintptr, 0, len(w.child))
	for _, file := range w.child {
		files = append(files, file.Fd())
	}
	return files
}

func (w *wires) closeChildEnds() {
	for i, file := range w.child {
		if file != nil && (i == 0 || file != w.child[0]) {
			_ = file.Close()
		}
	}
}

func (w *wires) closeOwnEnds() {
	for _, file := range w.own {
		_ = file.Close()
	}
}
