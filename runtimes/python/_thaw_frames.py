"""Frames of docs/runtime-protocol.md: their numbers, how they are read, and the heads of answers."""

import os
from _struct import Struct

from _thaw_values import BYTES_TYPE, JSON_TYPE, TEXT_TYPE, encode_json

LOAD, INVOKE, BODY, BODY_END, CANCEL, HOOK, PING = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07
HELLO, READY, LOAD_FAILED, RESULT, CHUNK, END, FAILED, LOG, HOOK_DONE, PONG = range(0x80, 0x8A)

HEADER = Struct(">IBI")
META_SIZE = Struct(">I")
MAX_PAYLOAD_BYTES = 1024 * 1024 + 64 * 1024


def meta_bytes(meta):
    data = encode_json(meta)
    return META_SIZE.pack(len(data)) + data


# The metas of almost all results, encoded once.
WHOLE = {kind: meta_bytes({"content_type": kind, "more": False}) for kind in (JSON_TYPE, TEXT_TYPE, BYTES_TYPE)}


class Reader:
    """Frames out of the bytes of a connection."""

    def __init__(self, conn):
        self._receive = conn.recv_into
        self._view = memoryview(bytearray(64 * 1024))
        self._start = 0
        self._end = 0
        # The instance was made ready for a snapshot: the end of its connection is not its own.
        self.may_end = False

    def next(self, flags=0):
        """(type, stream, payload). None: with MSG_DONTWAIT no whole frame is there yet, or the end that may come came."""
        while True:
            start = self._start
            there = self._end - start
            needed = 9
            if there >= 9:
                length, kind, stream = HEADER.unpack_from(self._view, start)
                if not 5 <= length <= MAX_PAYLOAD_BYTES + 5:
                    os._exit(1)
                needed = length + 4
                if there >= needed:
                    payload = bytes(self._view[start + 9 : start + needed])
                    if there == needed:
                        self._start = self._end = 0
                    else:
                        self._start = start + needed
                    return kind, stream, payload
            if start + needed > len(self._view):
                self._make_room(needed)
            try:
                received = self._receive(self._view[self._end :], 0, flags)
            except BlockingIOError:
                return None
            except OSError:
                received = 0
            if received == 0:
                if self.may_end:
                    return None
                os._exit(0)
            self._end += received

    def _make_room(self, needed):
        rest = bytes(self._view[self._start : self._end])
        if needed > len(self._view):
            self._view = memoryview(bytearray(needed + 64 * 1024))
        self._view[: len(rest)] = rest
        self._start = 0
        self._end = len(rest)
