package process

// Offsets count the bytes of each output channel from the start of the process.
type Offsets struct {
	Stdout *int64 `json:"stdout,omitempty"`
	Stderr *int64 `json:"stderr,omitempty"`
	Pty    *int64 `json:"pty,omitempty"`
}

func (o *Offsets) of(channel int) *int64 {
	if o == nil {
		return nil
	}
	return [channelCount]*int64{o.Stdout, o.Stderr, o.Pty}[channel]
}

// Reader is one stream that follows the output of a process, at its own pace.
type Reader struct {
	process  *Process
	position [channelCount]int64
	wake     chan struct{}
	turn     int
}

// Attach begins to follow the output: where from says, as far as it is still kept, else with what comes next.
func (p *Process) Attach(from *Offsets) *Reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	reader := &Reader{process: p, wake: make(chan struct{}, 1)}
	for channel := range p.outputs {
		output := &p.outputs[channel]
		reader.position[channel] = output.end
		if wanted := from.of(channel); wanted != nil {
			reader.position[channel] = min(max(*wanted, output.start), output.end)
		}
	}
	p.readers[reader] = struct{}{}
	return reader
}

// Detach ends the following; the process goes on.
func (r *Reader) Detach() {
	r.process.mu.Lock()
	defer r.process.mu.Unlock()
	delete(r.process.readers, r)
	r.process.room.Broadcast()
}

// Offsets are where delivery goes on.
func (r *Reader) Offsets() Offsets {
	r.process.mu.Lock()
	defer r.process.mu.Unlock()
	var offsets Offsets
	for channel, at := range [channelCount]**int64{&offsets.Stdout, &offsets.Stderr, &offsets.Pty} {
		if r.process.outputs[channel].source != nil {
			position := r.position[channel]
			*at = &position
		}
	}
	return offsets
}

// next is what there is to deliver now. All fields are empty when the reader has to wait.
type next struct {
	channel string
	data    []byte
	lost    bool
	end     *End
}

// take copies the next piece of output into buffer. The channels take turns.
func (r *Reader) take(buffer []byte) next {
	p := r.process
	p.mu.Lock()
	defer p.mu.Unlock()
	for range channelCount {
		channel := r.turn
		r.turn = (r.turn + 1) % channelCount
		output := &p.outputs[channel]
		at := r.position[channel]
		if at < output.start {
			return next{channel: channelNames[channel], lost: true}
		}
		if n := copy(buffer, output.chunk(at)); n > 0 {
			r.position[channel] += int64(n)
			p.room.Broadcast()
			return next{channel: channelNames[channel], data: buffer[:n]}
		}
	}
	if p.exit != nil && !p.hasOpenOutput() {
		return next{end: p.exit}
	}
	return next{}
}
