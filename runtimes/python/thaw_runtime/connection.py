"""Frames over the one connection to the worker."""

import os
from _collections import deque
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_STREAM, socket
from _struct import Struct
from _thread import allocate_lock

# `_socket` and its like are what `socket` and its like are made of: they load in a fraction of the time.

LOAD, INVOKE, BODY, BODY_END, CANCEL, HOOK, PING = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07
HELLO, READY, LOAD_FAILED, RESULT, CHUNK, END, FAILED, LOG, HOOK_DONE, PONG = range(0x80, 0x8A)

MAX_PAYLOAD_BYTES = 1024 * 1024 + 64 * 1024
CHUNK_BYTES = 256 * 1024
# Below the size from which malloc maps and unmaps fresh pages for every single read.
READ_BYTES = 64 * 1024

_header = Struct(">IBI")
_pack = _header.pack
_unpack = _header.unpack_from


def listen(path):
    """A listening socket whose name appears only once a connection to it succeeds."""
    listener = socket(AF_UNIX, SOCK_STREAM)
    temporary = path + ".tmp"
    for old in (temporary, path):
        try:
            os.unlink(old)
        except OSError:
            pass
    listener.bind(temporary)
    listener.listen(1)
    os.rename(temporary, path)
    return listener


def accept(listener):
    descriptor, _ = listener._accept()
    listener.close()
    return Connection(socket(fileno=descriptor))


def quit():
    """Ends the process at once: without its worker nothing in it is of use to anybody."""
    os._exit(0)


class Connection:
    def __init__(self, sock):
        self.sock = sock
        self.frames = deque()
        self._rest = bytearray()
        self._lock = allocate_lock()

    def next_frame(self):
        """Waits for the next frame: (type, stream, payload)."""
        frames = self.frames
        while not frames:
            self.read()
        return frames.popleft()

    def read(self, flags=0):
        """Takes in what has arrived, waiting for it unless flags say otherwise. Ends the process with the connection."""
        try:
            data = self.sock.recv(READ_BYTES, flags)
        except BlockingIOError:
            return
        except OSError:
            quit()
        if not data:
            quit()
        if not self._rest and len(data) >= 9:
            length, kind, stream = _unpack(data)
            if length + 4 == len(data):
                self.frames.append((kind, stream, data[9:]))
                return
        self._rest += data
        self._split()

    def read_available(self):
        self.read(MSG_DONTWAIT)

    def _split(self):
        rest = self._rest
        offset = 0
        while len(rest) - offset >= 9:
            length, kind, stream = _unpack(rest, offset)
            if length < 5 or length - 5 > MAX_PAYLOAD_BYTES:
                quit()
            end = offset + 4 + length
            if end > len(rest):
                break
            self.frames.append((kind, stream, bytes(rest[offset + 9 : end])))
            offset = end
        if offset:
            del rest[:offset]

    def send(self, kind, stream, payload=b""):
        data = _pack(5 + len(payload), kind, stream) + payload
        try:
            with self._lock:
                self.sock.sendall(data)
        except OSError:
            quit()

    def send_answer(self, stream, meta, body, more=False):
        """A result frame; a body too large for one frame goes on in chunks. `more`: the caller sends the end."""
        size = len(body)
        if size <= CHUNK_BYTES:
            encoded = _encode_meta(meta, more)
            self.send(RESULT, stream, len(encoded).to_bytes(4, "big") + encoded + body)
            return
        encoded = _encode_meta(meta, True)
        view = memoryview(body)
        self.send(RESULT, stream, len(encoded).to_bytes(4, "big") + encoded + view[:CHUNK_BYTES])
        self._send_pieces(stream, view[CHUNK_BYTES:])
        if not more:
            self.send(END, stream)

    def send_chunk(self, stream, body):
        if len(body) <= CHUNK_BYTES:
            self.send(CHUNK, stream, body)
        else:
            self._send_pieces(stream, memoryview(body))

    def _send_pieces(self, stream, view):
        for offset in range(0, len(view), CHUNK_BYTES):
            self.send(CHUNK, stream, bytes(view[offset : offset + CHUNK_BYTES]))


def _encode_meta(meta, more):
    if type(meta) is str:
        known = _known_metas.get((meta, more))
        if known is not None:
            return known
        meta = {"content_type": meta}
    from json import dumps

    encoded = dumps(dict(meta, more=more)).encode()
    if len(encoded) > 64 * 1024:
        raise ValueError("the headers of the answer are larger than 64 KiB")
    return encoded


JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"
LINES = "application/x-ndjson"

_known_metas = {
    (content_type, more): ('{"content_type":"%s","more":%s}' % (content_type, "true" if more else "false")).encode()
    for content_type in (JSON, TEXT, BYTES, LINES)
    for more in (False, True)
}
