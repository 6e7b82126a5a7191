package process

// ringBytes is how much output of each channel is kept for readers that attach later or are slow.
const ringBytes = 1 << 20

// ring holds the bytes [start, end) of an output, counted from its beginning. It grows with what it holds.
type ring struct {
	buffer     []byte
	start, end int64
}

// write appends at most ringBytes; the oldest bytes make room.
func (r *ring) write(data []byte) {
	r.grow(int(r.end-r.start) + len(data))
	for len(data) > 0 {
		n := copy(r.buffer[r.end%int64(len(r.buffer)):], data)
		data = data[n:]
		r.end += int64(n)
	}
	r.start = max(r.start, r.end-int64(len(r.buffer)))
}

func (r *ring) grow(wanted int) {
	size := max(len(r.buffer), 4096)
	for size < wanted && size < ringBytes {
		size *= 2
	}
	if size == len(r.buffer) {
		return
	}
	larger := make([]byte, size)
	for at := r.start; at < r.end; {
		chunk := r.chunk(at)
		chunk = chunk[:min(len(chunk), size-int(at%int64(size)))]
		copy(larger[at%int64(size):], chunk)
		at += int64(len(chunk))
	}
	r.buffer = larger
}

// chunk is what lies in one piece from an offset within [start, end); it is valid until the next write.
func (r *ring) chunk(at int64) []byte {
	if at >= r.end {
		return nil
	}
	from := int(at % int64(len(r.buffer)))
	return r.buffer[from:min(len(r.buffer), from+int(r.end-at))]
}
