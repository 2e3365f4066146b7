"""A link: many byte streams over one WebSocket between an agent and its hub.

Both ends are this class. Each stream has a local socket. Its data travels as `data`, its end of file as `end`, an
error as `reset`. The unacknowledged data of a stream is limited by its window, so that a stream that nobody reads
stops alone. Streams take turns by the frame. The hub opens them; on the agent `dial` makes the local connection.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Callable, Iterable

from occ_app.link.frames import DATA, END, LARGEST_STREAM, OPEN, RESET, Frame, Violation, decode, encode, increment
from occ_app.link.stream import Stream
from occ_app.link.websocket import LinkSocket
from occ_app.system.event_loop import Loop

log = logging.getLogger("occ.link")

PING_SECONDS = 20.0
MAX_STREAMS = 768  # an agent serves 728 requests at once by default, and may have 1,024 files open
_SILENT_PINGS = 2.5  # without a sign of life, until the other side counts as gone
_FRAMES_PER_TURN = 32  # frames taken from local sockets before the others of the loop have their turn

NORMAL, GOING_AWAY, PROTOCOL_ERROR, FAULT = 1000, 1001, 1002, 1011


class Link:
    """One end of a link, in the thread of `loop`.

    `ended` is called once, with the reason, when the link is over. With `dial` it accepts the streams that the other
    side opens; without it, it opens them itself.
    """

    def __init__(
        self,
        loop: Loop,
        websocket: LinkSocket,
        ended: Callable[[str], None],
        dial: Callable[[], socket.socket] | None = None,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        self._loop = loop
        self._websocket = websocket
        self._ended = ended
        self._dial = dial
        self._ping_seconds = ping_seconds
        self._next_ping = time.monotonic() + ping_seconds
        self._streams: dict[int, Stream] = {}
        self._newest = 0  # the highest number of a stream so far; those below that are not in `_streams` are over
        self._over = False
        self._finishing = ""
        # The local sockets have a separate epoll: it can pause them all at once, and it serves them in turn.
        self._locals = select.epoll()
        self._by_descriptor: dict[int, Stream] = {}
        self._watched: dict[int, int] = {}
        self._resting = True
        self._waiting = 0

    def begin(self) -> None:
        """Serve the link from now on."""
        self._websocket.give_up_after(_SILENT_PINGS * self._ping_seconds)
        self._loop.at(self._next_ping, self._tick)
        self._step(self._take_messages, self._websocket.received)
        self._step(
            self._take_messages, self._websocket.receive
        )  # TLS may hold data that arrived with the end of the handshake

    def open(self, local: socket.socket) -> None:
        """Open a stream for this local socket, which is the link's from now on."""
        local.setblocking(False)
        if self._over or len(self._streams) >= MAX_STREAMS:
            local.close()
        elif self._newest >= LARGEST_STREAM:
            local.close()
            self.close("its numbers of streams are used up")
        else:
            self._newest += 1
            self._step(self._add, self._newest, local)

    def finish(self, reason: str) -> None:
        """End the link once its streams have ended and the peer has their data.

        Data that a caller does not read into its socket is lost, as with any end of a link.
        """
        self._finishing = reason
        self._step(lambda: None)

    def close(self, reason: str, code: int = NORMAL) -> None:
        """End the link and all its streams, at once."""
        if self._over:
            return
        self._over = True
        self._loop.forget(self._locals.fileno())
        self._loop.forget(self._websocket.fileno())
        self._locals.close()
        self._websocket.close(code, reason)
        for stream in self._streams.values():
            stream.local.close()
        self._streams.clear()
        self._by_descriptor.clear()
        self._ended(reason)

    def _step(self, work: Callable[..., None], *arguments: object) -> None:
        """Call a function and send its output; any error ends this link and nothing else."""
        if self._over:
            return
        try:
            work(*arguments)
            if not self._over:
                if self._finishing and all(stream.ended for stream in self._streams.values()):
                    self._websocket.say_goodbye(GOING_AWAY, self._finishing)
                self._websocket.send_pending()
                self._wait()
        except Violation as violation:
            self.close(f"the other side broke the protocol: {violation}", PROTOCOL_ERROR)
        except OSError as error:
            self.close((error.strerror or str(error)).lower())
        except Exception:
            log.exception("internal error in a link")
            self.close("a fault of OCC", FAULT)

    def _wait(self) -> None:
        """Register the events to wait for with the loop."""
        mask = select.EPOLLIN | (select.EPOLLOUT if self._websocket.waits else 0)
        if mask != self._waiting:
            self._waiting = mask
            self._loop.watch(self._websocket.fileno(), mask, self._websocket_happened)
        if self._websocket.full != self._resting:
            self._resting = self._websocket.full
            if self._resting:
                self._loop.forget(self._locals.fileno())
            else:
                self._loop.watch(self._locals.fileno(), select.EPOLLIN, self._locals_happened)

    def _websocket_happened(self, mask: int) -> None:
        # What epoll says of an old descriptor with the same number does no harm: nothing here blocks.
        self._step(self._take_messages, self._websocket.receive if mask & ~select.EPOLLOUT else list)

    def _locals_happened(self, _: int) -> None:
        self._step(self._serve_locals)

    def _tick(self) -> None:
        self._step(self._keep_alive)

    def _keep_alive(self) -> None:
        now = time.monotonic()
        silent_at = self._websocket.heard + _SILENT_PINGS * self._ping_seconds
        if now >= silent_at:
            raise ConnectionResetError(f"nothing was heard for {now - self._websocket.heard:.0f} s")
        # Received data proves as much as an answer would, so only one end pings at a time.
        self._next_ping = max(self._next_ping, self._websocket.heard + self._ping_seconds)
        if now >= self._next_ping:
            self._websocket.ping()
            self._next_ping = now + self._ping_seconds
        self._loop.at(min(self._next_ping, silent_at), self._tick)

    # -- from the local sockets to the other side

    def _serve_locals(self) -> None:
        for _ in range(_FRAMES_PER_TURN):
            if self._websocket.full:
                return
            # One at a time: epoll goes round those that are ready, also when this ends in the middle of them.
            ready = self._locals.poll(0, 1)
            if not ready:
                return
            for descriptor, mask in ready:
                stream = self._by_descriptor[descriptor]
                self._try(stream, stream.happened, mask)

    def _try(self, stream: Stream, work: Callable[..., None], *arguments: object) -> None:
        """Do something with a stream; a local socket that is broken resets it."""
        try:
            work(*arguments)
            if not stream.over:
                self._watch(stream)
                return
        except OSError:
            self._emit(Frame(stream.number, RESET))
        self._drop(stream)

    def _emit(self, frame: Frame) -> None:
        self._websocket.put(encode(frame))

    def _watch(self, stream: Stream) -> None:
        descriptor, wanted = stream.local.fileno(), stream.wants
        watched = self._watched.get(descriptor)
        if wanted == watched:
            return
        if wanted is None:
            self._locals.unregister(descriptor)
            del self._watched[descriptor]
            return
        (self._locals.register if watched is None else self._locals.modify)(descriptor, wanted)
        self._watched[descriptor] = wanted

    def _add(self, number: int, local: socket.socket) -> None:
        stream = Stream(number, local, self._emit)
        self._streams[number] = stream
        self._by_descriptor[local.fileno()] = stream
        if self._dial is None:
            self._emit(Frame(number, OPEN))
        self._watch(stream)

    def _drop(self, stream: Stream) -> None:
        descriptor = stream.local.fileno()
        if self._watched.pop(descriptor, None) is not None:
            self._locals.unregister(descriptor)
        del self._by_descriptor[descriptor]
        del self._streams[stream.number]
        stream.local.close()

    # -- from the other side to the local sockets

    def _take_messages(self, messages: Callable[[], Iterable[bytes]]) -> None:
        for message in messages():
            self._take(decode(message))

    def _take(self, frame: Frame) -> None:
        if frame.kind == OPEN:
            self._opened(frame.stream)
            return
        stream = self._streams.get(frame.stream)
        if stream is None:
            if frame.stream > self._newest:
                raise Violation(f"a frame for stream {frame.stream}, which was never opened")
            return  # it was under way when the stream ended here
        if frame.kind == RESET:
            self._drop(stream)
        elif frame.kind == DATA:
            self._try(stream, stream.take, frame.payload)
        elif frame.kind == END:
            self._try(stream, stream.finish)
        else:
            self._try(stream, stream.grant, increment(frame))

    def _opened(self, number: int) -> None:
        if self._dial is None or number <= self._newest:
            raise Violation(f"it opened stream {number}")
        self._newest = number
        try:
            if len(self._streams) >= MAX_STREAMS:
                raise BlockingIOError
            local = self._dial()
        except OSError:
            self._emit(Frame(number, RESET))
        else:
            self._add(number, local)
