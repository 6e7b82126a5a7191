package protocol

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// A frame is u32 length · u8 type · u32 stream · payload, big-endian; length counts all that follows it.
const (
	headerBytes     = 9
	maxPayloadBytes = 1<<20 + 64<<10
	// PieceBytes is the most of a body that travels in one frame.
	PieceBytes = 256 << 10
	// MaxMetaBytes bounds the meta JSON of a result, so that it fits a frame together with a piece.
	MaxMetaBytes = 64 << 10
)

type frameType byte

const (
	frameLoad       frameType = 0x01
	frameInvoke     frameType = 0x02
	frameBody       frameType = 0x03
	frameBodyEnd    frameType = 0x04
	frameCancel     frameType = 0x05
	frameHook       frameType = 0x06
	framePing       frameType = 0x07
	frameHello      frameType = 0x80
	frameReady      frameType = 0x81
	frameLoadFailed frameType = 0x82
	frameResult     frameType = 0x83
	frameChunk      frameType = 0x84
	frameEnd        frameType = 0x85
	frameFailed     frameType = 0x86
	frameLog        frameType = 0x87
	frameHookDone   frameType = 0x88
	framePong       frameType = 0x89
)

type frame struct {
	kind    frameType
	stream  uint32
	payload []byte
}

func readFrame(reader *bufio.Reader) (frame, error) {
	var header [headerBytes]byte
	if _, err := io.ReadFull(reader, header[:]); err != nil {
		return frame{}, err
	}
	length := binary.BigEndian.Uint32(header[:4])
	if length < 5 || length-5 > maxPayloadBytes {
		return frame{}, fmt.Errorf("a frame of %d bytes", length)
	}
	payload := make([]byte, length-5)
	if _, err := io.ReadFull(reader, payload); err != nil {
		return frame{}, err
	}
	return frame{frameType(header[4]), binary.BigEndian.Uint32(header[5:]), payload}, nil
}

func encodeHeader(kind frameType, stream uint32, payloadBytes int) []byte {
	header := make([]byte, headerBytes, headerBytes+128)
	binary.BigEndian.PutUint32(header, uint32(payloadBytes+5))
	header[4] = byte(kind)
	binary.BigEndian.PutUint32(header[5:], stream)
	return header
}

// splitMeta takes the payload of an invoke frame apart: u32 length of meta · meta JSON · body.
func splitMeta(payload []byte, meta any) ([]byte, error) {
	if len(payload) < 4 {
		return nil, fmt.Errorf("a payload too short for its meta")
	}
	metaBytes := binary.BigEndian.Uint32(payload)
	if uint64(metaBytes) > uint64(len(payload)-4) {
		return nil, fmt.Errorf("meta is longer than the payload")
	}
	return payload[4+metaBytes:], json.Unmarshal(payload[4:4+metaBytes], meta)
}

func joinMeta(meta any) []byte {
	encoded := mustEncode(meta)
	prefix := make([]byte, 4, 4+len(encoded))
	binary.BigEndian.PutUint32(prefix, uint32(len(encoded)))
	return append(prefix, encoded...)
}

// mustEncode encodes this package's own messages: strings, numbers and maps of them, which always can be.
func mustEncode(message any) []byte {
	encoded, err := json.Marshal(message)
	if err != nil {
		panic(err)
	}
	return encoded
}
