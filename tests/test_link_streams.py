"""The two ends of a link on a socket pair: bytes, windows, turns, and a peer that does not keep to the protocol."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from occ_app.link import link
from occ_app.link.frames import (
    DATA,
    END,
    LARGEST_PAYLOAD,
    OPEN,
    RESET,
    WINDOW,
    WINDOW_BYTES,
    Frame,
    Violation,
    decode,
    encode,
    increment,
    window,
)
from occ_app.link.link import Link
from occ_app.link.websocket import LinkSocket
from occ_app.system.event_loop import Loop
from tests import sentences
from tests.conftest import wait_until

BUSY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


class End:
    """One end of a link with a thread of its own. `accepted` gets the far side of each stream that was opened here."""

    def __init__(self, connection: socket.socket, kind: ConnectionType, ping: float = 20.0) -> None:
        self.loop = Loop()
        self.accepted: queue.Queue[socket.socket] = queue.Queue()
        self.dialled = True
        self.why: list[str] = []
        dial = self._dial if kind is ConnectionType.CLIENT else None
        self.link = Link(self.loop, LinkSocket(connection, Connection(kind)), self.why.append, dial, ping)
        self.loop.soon(self.link.begin)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def open(self) -> socket.socket:
        here, there = socket.socketpair()
        here.settimeout(20)
        self.loop.soon(lambda: self.link.open(there))
        return here

    def _dial(self) -> socket.socket:
        if not self.dialled:
            raise ConnectionRefusedError
        here, there = socket.socketpair()
        here.settimeout(20)
        there.setblocking(False)
        self.accepted.put(here)
        return there

    def close(self) -> None:
        self.loop.soon(lambda: self.link.close("the test is over"))
        self.loop.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.loop.close()
        while not self.accepted.empty():
            self.accepted.get().close()


class Pair:
    def __init__(self, ping: float = 20.0) -> None:
        one, other = socket.socketpair()
        self.hub = End(one, ConnectionType.SERVER, ping)
        self.agent = End(other, ConnectionType.CLIENT, ping)

    def stream(self) -> tuple[socket.socket, socket.socket]:
        """A stream: the caller's socket, and the API's."""
        return self.hub.open(), self.agent.accepted.get(timeout=20)

    def close(self) -> None:
        self.hub.close()
        self.agent.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with contextlib.closing(Pair()) as pair:
        yield pair


def read_all(connection: socket.socket) -> bytes:
    content = bytearray()
    while data := connection.recv(1 << 16):
        content += data
    return bytes(content)


def exactly(connection: socket.socket, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        data = connection.recv(size - len(content))
        assert data, f"it ended after {len(content)} bytes"
        content += data
    return bytes(content)


def in_thread(work: Callable[..., Any], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    return thread


FRAMES = st.builds(
    Frame, st.integers(1, 2**32 - 1), st.sampled_from([OPEN, DATA, END, RESET, WINDOW]), st.binary(max_size=100)
)


@given(FRAMES)
def test_a_frame_comes_out_as_it_went_in(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


@given(st.binary(max_size=20))
def test_any_bytes_are_a_frame_or_a_violation(message: bytes) -> None:
    with contextlib.suppress(Violation):
        frame = decode(message)
        assert encode(frame) == message
        increment(frame)


@BUSY
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.binary(max_size=3000)), max_size=30))
def test_bytes_come_out_of_each_stream_as_they_went_in(pieces: list[tuple[int, bool, bytes]]) -> None:
    with contextlib.closing(Pair()) as pair, contextlib.ExitStack() as sockets:
        streams = [pair.stream() for _ in range(4)]
        for stream in streams:
            for side in stream:
                sockets.enter_context(side)
        for number, upwards, piece in pieces:
            streams[number][0 if upwards else 1].sendall(piece)
        for number, (caller, api) in enumerate(streams):
            for side in (caller, api):
                side.shutdown(socket.SHUT_WR)
            assert read_all(api) == b"".join(p for n, upwards, p in pieces if n == number and upwards)
            assert read_all(caller) == b"".join(p for n, upwards, p in pieces if n == number and not upwards)


def test_more_than_a_window_arrives_whole(pair: Pair) -> None:
    content = os.urandom(3 * WINDOW_BYTES + 12345)
    caller, api = pair.stream()
    with caller, api:
        sender = in_thread(lambda: (caller.sendall(content), caller.shutdown(socket.SHUT_WR)))
        assert read_all(api) == content
        sender.join()
        api.sendall(b"got it")
        assert caller.recv(100) == b"got it"


def test_an_end_closes_one_direction_and_a_stream_is_over_after_both(pair: Pair) -> None:
    caller, api = pair.stream()
    with caller, api:
        caller.shutdown(socket.SHUT_WR)
        assert api.recv(1) == b""
        api.sendall(b"still here")
        assert exactly(caller, 10) == b"still here"
        api.shutdown(socket.SHUT_WR)
        assert caller.recv(1) == b""
        wait_until(lambda: not pair.hub.link._streams and not pair.agent.link._streams, "the stream to be over")


def test_a_caller_that_goes_away_is_heard_by_the_api(pair: Pair) -> None:
    caller, api = pair.stream()
    with api:
        api.sendall(b"event")
        assert exactly(caller, 5) == b"event"
        caller.close()
        assert api.recv(1) == b""
        wait_until(lambda: not pair.hub.link._streams and not pair.agent.link._streams, "the stream to be over")


def test_an_api_that_goes_away_is_heard_by_the_caller_after_its_last_words(pair: Pair) -> None:
    caller, api = pair.stream()
    with caller:
        api.sendall(b"last words")
        api.close()
        assert read_all(caller) == b"last words"


def test_last_words_that_wait_for_a_window_are_not_lost(pair: Pair) -> None:
    """The API has sent all, closed, and what it said is more than one window: the caller reads it late, and whole."""
    caller, api = pair.stream()
    content = os.urandom(2 * WINDOW_BYTES)
    caller.shutdown(socket.SHUT_WR)
    with caller:
        sender = in_thread(lambda: (api.sendall(content), api.close()))
        wait_until(
            lambda: any(stream._credit == 0 for stream in pair.agent.link._streams.values()), "the window to be used up"
        )
        assert read_all(caller) == content
        sender.join()


def test_an_api_that_cannot_be_reached_ends_the_stream(pair: Pair) -> None:
    pair.agent.dialled = False
    with pair.hub.open() as caller:
        assert caller.recv(1) == b""
    assert pair.hub.why == pair.agent.why == []


def test_a_reader_that_takes_nothing_stops_itself_alone(pair: Pair) -> None:
    slow, from_slow = pair.stream()
    quick, from_quick = pair.stream()
    with slow, from_slow, quick, from_quick:
        taken = 0
        while taken < WINDOW_BYTES:
            taken += from_slow.send(bytes(1 << 16))
        from_slow.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                taken += from_slow.send(bytes(1 << 16))
        assert taken <= WINDOW_BYTES + 2_000_000  # a window, and what the kernel keeps for two pairs of sockets
        content = os.urandom(2_000_000)
        sender = in_thread(from_quick.sendall, content)
        assert exactly(quick, len(content)) == content
        sender.join()
        held = pair.hub.link._streams.values()
        wait_until(lambda: sum(len(stream._unwritten) for stream in held) <= WINDOW_BYTES, "no more than a window held")
        # It was stopped and not broken.
        assert exactly(slow, taken) == bytes(taken)


@pytest.mark.parametrize("bulk", [1, 12])
def test_small_messages_have_their_turn_beside_large_ones(pair: Pair, bulk: int) -> None:
    """Round trips on one stream, while others carry as much as they can in both directions."""
    size, streams = 96_000_000 // bulk, [pair.stream() for _ in range(bulk)]
    small, echo = pair.stream()
    left = threading.Semaphore(0)

    def drain(connection: socket.socket) -> None:
        exactly(connection, size)
        left.release()

    content = bytes(size)
    threads = [in_thread(side.sendall, content) for stream in streams for side in stream]
    threads += [in_thread(drain, side) for stream in streams for side in stream]
    trips = 0
    with small, echo:
        while not left.acquire(blocking=False):
            small.sendall(b"ping")
            echo.sendall(exactly(echo, 4))
            assert exactly(small, 4) == b"ping"
            trips += 1
    for thread in threads:
        thread.join()
    for stream in streams:
        for side in stream:
            side.close()
    # A trip waits for a few turns of the others, which have more than a thousand.
    assert trips >= 10


def test_hundreds_of_streams_go_at_once(pair: Pair) -> None:
    callers = [pair.hub.open() for _ in range(200)]
    for caller in callers:
        caller.sendall(b"hello")
    apis = [pair.agent.accepted.get(timeout=20) for _ in callers]
    assert {exactly(api, 5) for api in apis} == {b"hello"}
    for each in (*callers, *apis):
        each.close()
    wait_until(lambda: not pair.hub.link._streams and not pair.agent.link._streams, "the streams to be over")


def test_more_streams_than_a_link_has_are_refused_and_the_others_go_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "MAX_STREAMS", 3)
    streams = [pair.stream() for _ in range(3)]
    with pair.hub.open() as one_more:
        assert one_more.recv(1) == b""
    for caller, api in streams:
        with caller, api:
            caller.sendall(b"hello")
            assert exactly(api, 5) == b"hello"


def test_a_link_that_is_to_finish_lets_its_streams_say_all_they_have(pair: Pair) -> None:
    caller, api = pair.stream()
    content = os.urandom(100_000)  # no more than a local socket takes from a link that is over
    with caller:
        pair.agent.loop.soon(lambda: pair.agent.link.finish("stopping"))
        sender = in_thread(lambda: (api.sendall(content), api.close()))
        assert read_all(caller) == content
        sender.join()
        wait_until(lambda: pair.hub.why and pair.agent.why, "both ends to be over")
        assert pair.hub.why == ["stopping"]


def test_the_end_of_a_link_leaves_nothing() -> None:
    def descriptors() -> int:
        return psutil.Process().num_fds()

    before, threads = descriptors(), threading.active_count()
    pair = Pair()
    streams = [pair.stream() for _ in range(5)]
    pair.hub.loop.soon(lambda: pair.hub.link.close("enough"))
    for caller, api in streams:
        with caller, api:
            assert caller.recv(1) == api.recv(1) == b""
    wait_until(lambda: pair.agent.why, "the other end to notice")
    assert pair.hub.why == pair.agent.why == ["enough"]
    with pair.hub.open() as late:
        assert late.recv(1) == b""
    pair.close()
    wait_until(lambda: descriptors() <= before and threading.active_count() <= threads, "nothing to be left")


class Stranger:
    """A peer that speaks WebSocket and sends what it likes, against the end it is given."""

    def __init__(self, kind: ConnectionType, ping: float = 20.0) -> None:
        mine, other = socket.socketpair()
        mine.settimeout(20)
        self.end = End(other, kind, ping)
        self.socket = mine
        self.framing = Connection(ConnectionType.SERVER if kind is ConnectionType.CLIENT else ConnectionType.CLIENT)

    def send(self, *messages: bytes | str) -> None:
        with contextlib.suppress(OSError):  # it may have closed at the first of them
            for message in messages:
                event = TextMessage(data=message) if isinstance(message, str) else BytesMessage(data=message)
                self.socket.sendall(self.framing.send(event))

    def received(self) -> Iterator[Any]:
        """Events to the end of the connection."""
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return
            if not data:
                return
            self.framing.receive_data(data)
            for event in self.framing.events():
                yield event
                if isinstance(event, CloseConnection):
                    return

    def frames(self) -> Iterator[Frame]:
        return (decode(event.data) for event in self.received() if isinstance(event, BytesMessage))

    def close(self) -> None:
        self.end.close()
        self.socket.close()


def frame(stream: int, kind: int, payload: bytes = b"") -> bytes:
    return encode(Frame(stream, kind, payload))


OVER_THE_WINDOW = [frame(1, DATA, bytes(LARGEST_PAYLOAD))] * (WINDOW_BYTES // LARGEST_PAYLOAD)


BROKEN: dict[str, list[Any]] = {
    "empty": [b""],
    "short": [b"\0\0\0"],
    "no kind": [frame(1, 0)],
    "unknown kind": [frame(1, 9)],
    "stream 0": [frame(0, OPEN)],
    "data of no stream": [frame(1, DATA, b"never opened")],
    "data of another stream": [frame(1, OPEN), frame(2, DATA, b"never opened")],
    "reset of no stream": [frame(7, RESET)],
    "open twice": [frame(1, OPEN), frame(1, OPEN)],
    "open backwards": [frame(5, OPEN), frame(4, OPEN)],
    "too long": [frame(1, OPEN), frame(1, DATA, bytes(LARGEST_PAYLOAD + 1))],
    "far too long": [frame(1, OPEN), bytes(10_000_000)],
    "data after end": [frame(1, OPEN), frame(1, END), frame(1, DATA, b"after the end")],
    "short window": [frame(1, OPEN), frame(1, WINDOW, b"\0")],
    "huge window": [frame(1, OPEN), encode(window(1, 2**31))],
    "text": ["text"],
}


@pytest.mark.parametrize("messages", BROKEN.values(), ids=BROKEN)
def test_whoever_breaks_the_protocol_is_told_and_loses_the_link(messages: list[Any]) -> None:
    with contextlib.closing(Stranger(ConnectionType.CLIENT)) as stranger:
        sender = in_thread(stranger.send, *messages)
        codes = [event.code for event in stranger.received() if isinstance(event, CloseConnection)]
        wait_until(lambda: stranger.end.why, "the link to end")
        stranger.socket.close()
        sender.join()
        assert "protocol" in stranger.end.why[0]
        assert codes in ([1002], [])  # the last words are lost where the stranger still sends


def test_data_over_the_window_of_a_reader_that_takes_nothing_ends_the_link() -> None:
    with contextlib.closing(Stranger(ConnectionType.CLIENT)) as stranger:
        stranger.send(frame(1, OPEN))
        for _ in range(20):
            stranger.send(*OVER_THE_WINDOW)
        wait_until(lambda: stranger.end.why, "the link to end")
        assert "window" in stranger.end.why[0]


def test_what_a_peer_says_at_its_end_is_one_line_of_a_log() -> None:
    with contextlib.closing(Stranger(ConnectionType.CLIENT)) as stranger:
        stranger.socket.sendall(stranger.framing.send(CloseConnection(code=1000, reason="bye\nERROR made up")))
        wait_until(lambda: stranger.end.why, "the link to end")
        assert stranger.end.why == ["bye\\nerror made up"]


def test_an_agent_opens_no_stream_at_its_hub() -> None:
    with contextlib.closing(Stranger(ConnectionType.SERVER)) as stranger:
        stranger.send(frame(1, OPEN))
        wait_until(lambda: stranger.end.why, "the link to end")


def test_what_comes_late_for_a_stream_that_is_over_is_passed_over() -> None:
    with contextlib.closing(Stranger(ConnectionType.CLIENT)) as stranger:
        stranger.send(frame(1, OPEN), frame(1, RESET))
        late = [frame(1, DATA, b"late"), frame(1, END), frame(1, RESET), encode(window(1, 10))]
        stranger.send(*late, frame(2, OPEN), frame(2, DATA, b"hello"))
        stranger.end.accepted.get(timeout=20).close()
        with stranger.end.accepted.get(timeout=20) as api:
            assert exactly(api, 5) == b"hello"
        assert stranger.end.why == []


def test_a_peer_that_answers_no_ping_is_dropped_and_one_that_does_is_not() -> None:
    # The live ones have a longer time to answer: a thread of a busy machine may wait for its turn.
    with contextlib.closing(Pair(ping=1.5)) as pair, contextlib.closing(Stranger(ConnectionType.CLIENT, 0.1)) as mute:
        wait_until(lambda: mute.end.why, "the mute one to be dropped")
        assert sentences.NOTHING_WAS_HEARD in mute.end.why[0]
        for _ in range(3):  # pings with their answers
            before = pair.hub.link._websocket.heard
            wait_until(lambda: pair.hub.link._websocket.heard != before, "an answer")  # noqa: B023 - called at once
        assert pair.hub.why == pair.agent.why == []
        caller, api = pair.stream()
        with caller, api:
            caller.sendall(b"alive")
            assert exactly(api, 5) == b"alive"


def test_a_peer_that_asks_and_never_reads_is_dropped() -> None:
    with contextlib.closing(Stranger(ConnectionType.CLIENT)) as stranger, contextlib.suppress(OSError):
        while not stranger.end.why:
            stranger.socket.sendall(stranger.framing.send(Ping(payload=bytes(125))) * 100)
    assert stranger.end.why


ANYTHING = st.binary(max_size=30) | st.builds(
    frame, st.integers(0, 4), st.integers(0, 6), st.binary(max_size=8) | st.just((1000).to_bytes(4, "big"))
)


@BUSY
@given(st.lists(ANYTHING, max_size=20), st.sampled_from([ConnectionType.CLIENT, ConnectionType.SERVER]))
def test_any_messages_are_served_or_end_the_link_with_a_reason(messages: list[bytes], kind: ConnectionType) -> None:
    with contextlib.closing(Stranger(kind)) as stranger:
        stranger.send(*messages)
        stranger.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: stranger.end.why, "the link to end")
        assert "fault" not in stranger.end.why[0]
        assert not stranger.end.link._streams
