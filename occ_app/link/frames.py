"""The frames of a link: one per binary message of its WebSocket.

u32 stream (big endian), u8 kind, then at most 64 KiB of payload: the bytes of `data`, the u32 increment of `window`,
nothing in the others, where a receiver ignores any content.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SUBPROTOCOL = "occ-link.1"
OPEN, DATA, END, RESET, WINDOW = 1, 2, 3, 4, 5
LARGEST_PAYLOAD = 64 * 1024
LARGEST_STREAM = 2**32 - 1
WINDOW_BYTES = 256 * 1024

_HEAD = struct.Struct("!IB")
_INCREMENT = struct.Struct("!I")
LARGEST_MESSAGE = _HEAD.size + LARGEST_PAYLOAD


class Violation(Exception):
    """The other side broke the protocol; the text says how.

    The link is closed.
    """


class Frame(NamedTuple):
    """One frame. `stream` counts from 1."""

    stream: int
    kind: int
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    return _HEAD.pack(frame.stream, frame.kind) + frame.payload


def decode(message: bytes) -> Frame:
    """Return the frame of one message. Raises Violation."""
    if not _HEAD.size <= len(message) <= LARGEST_MESSAGE:
        raise Violation(f"a frame of {len(message)} bytes")
    stream, kind = _HEAD.unpack_from(message)
    if stream == 0 or not OPEN <= kind <= WINDOW:
        raise Violation(f"a frame of kind {kind} for stream {stream}")
    return Frame(stream, kind, message[_HEAD.size :])


def window(stream: int, increment: int) -> Frame:
    """So many bytes more may be sent on this stream."""
    return Frame(stream, WINDOW, _INCREMENT.pack(increment))


def increment(frame: Frame) -> int:
    """Return the bytes that a `window` frame grants. Raises Violation."""
    if len(frame.payload) != _INCREMENT.size:
        raise Violation(f"a window frame with {len(frame.payload)} bytes")
    granted: int = _INCREMENT.unpack(frame.payload)[0]
    return granted
