package process

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func contents(r *ring) []byte {
	var all []byte
	for at := r.start; at < r.end; {
		chunk := r.chunk(at)
		all = append(all, chunk...)
		at += int64(len(chunk))
	}
	return all
}

func TestRingKeepsTheLastBytesOfAnySequenceOfWrites(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var r ring
	var all []byte
	for len(all) < 5*ringBytes {
		piece := make([]byte, random.IntN(readBytes))
		for i := range piece {
			piece[i] = byte(random.Uint32())
		}
		r.write(piece)
		all = append(all, piece...)
		kept := contents(&r)
		if r.end != int64(len(all)) || !bytes.HasSuffix(all, kept) {
			t.Fatalf("after %d bytes the ring holds something else", len(all))
		}
		if wanted := min(len(all), ringBytes); len(kept) < wanted && len(kept) < len(r.buffer) {
			t.Fatalf("after %d bytes the ring holds %d", len(all), len(kept))
		}
	}
	if len(contents(&r)) != ringBytes || len(r.buffer) != ringBytes {
		t.Fatalf("a full ring holds %d bytes", len(contents(&r)))
	}
}

func TestRingGrowsOnlyWithItsContents(t *testing.T) {
	var r ring
	r.write([]byte("short"))
	if len(r.buffer) != 4096 {
		t.Fatalf("5 bytes take %d", len(r.buffer))
	}
}
