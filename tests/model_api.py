"""A loopback stand-in for the model's Messages API, good enough for the real Claude Code CLI.

A test says what the model answers inside the prompt itself, as JSON after a marker:

    Fix the bug. @reply{"turns": [{"text": "Looking.", "tools": [{"name": "Read", "input": {"file_path": "a.py"}}]},
                                  {"text": "Done.", "chunks": 3}]}

Turn k answers the request that has k assistant messages after the newest prompt with a marker, and the last turn
repeats. Nothing is remembered from one request to the next, so runs at the same time cannot mix. A prompt without a
marker gets DEFAULT_REPLY. The fields of a turn are those of Turn.

    with serve() as api:
        run_cli(ANTHROPIC_BASE_URL=api.url, ANTHROPIC_API_KEY=FAKE_KEY)
        assert api.requests()[-1]["authenticated"]

For use by hand, `python tests/model_api.py [--port N]` prints `READY http://127.0.0.1:N`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAKE_KEY = "sk-ant-test-fake"
DEFAULT_REPLY = "Hello from the model."
MARKER = "@reply{"
_SCRIPT = re.compile(re.escape(MARKER) + r"(?!\\)")  # one inside another's JSON is a sub-agent's

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """One answer of the model. Lone surrogates are allowed in deltas, so an emoji may be split over two of them."""

    text: str = ""
    thinking: str = ""  # before the text, as one delta
    chunks: int | list[str] = 1  # how many deltas `text` is cut into, or the exact deltas
    bytes: int = 0  # so much generated text instead of `text`
    chunk_bytes: int = 4096  # the size of one delta of generated text
    delay: float = 0  # seconds before each delta
    first_delay: float = 0  # seconds before the response headers
    gate: str = ""  # a path: the deltas after the first one wait until it exists
    tools: list[Json] = field(default_factory=list)  # {"name", "input"} of each tool the model asks for
    error: int = 0  # answer with this HTTP status instead
    message: str = "made-up error"
    headers: Json = field(default_factory=dict)  # of an answer with such a status
    hang: str = ""  # "before": never answer; "mid": fall silent after the deltas; "cut": close the connection there
    wire_bytes: int = 0  # write the socket in pieces of this many bytes, even inside a character
    ascii: bool = False  # escape everything beyond ASCII, an emoji as two surrogates


def prompt_texts(message: Json) -> list[str]:
    """The text blocks of one message of a request, in order; tool results and images are left out."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [block["text"] for block in content or [] if block.get("type") == "text"]


def choose_turn(messages: list[Json], scripts: Mapping[str, list[Json]] | None = None) -> Turn:
    """The turn that answers a request with these messages. Raises ValueError or TypeError when a marker is wrong.

    `scripts` has the turns for prompts without a marker.
    """
    for index in reversed(range(len(messages))):
        script = _script_in(messages[index], scripts or {})
        if script is not None:
            turns = script["turns"]
            answered = sum(message["role"] == "assistant" for message in messages[index:])
            return Turn(**turns[min(answered, len(turns) - 1)])
    return Turn(text=DEFAULT_REPLY)


def _script_in(message: Json, scripts: Mapping[str, list[Json]]) -> Json | None:
    """The JSON after the last marker in a prompt, or None."""
    if message["role"] != "user":
        return None
    for text in reversed(prompt_texts(message)):
        if text.strip() in scripts:
            return {"turns": scripts[text.strip()]}
        found = [match.end() - 1 for match in re.finditer(_SCRIPT, text)]
        if found:
            script: Json = json.JSONDecoder().raw_decode(text, found[-1])[0]
            if not script.get("turns"):
                raise ValueError("the marker has no turns")
            return script
    return None


def deltas(turn: Turn) -> list[str]:
    """The pieces in which the text of a turn is streamed."""
    if isinstance(turn.chunks, list):
        return turn.chunks
    if turn.bytes:
        line = "the quick brown fox jumps over the lazy dog 0123456789\n"
        text = (line * math.ceil(turn.bytes / len(line)))[: turn.bytes]
        return [text[start : start + turn.chunk_bytes] for start in range(0, len(text), turn.chunk_bytes)]
    length = len(turn.text)
    count = max(1, min(turn.chunks, length))
    return [turn.text[length * i // count : length * (i + 1) // count] for i in range(count)] if length else []


def answer(turn: Turn, model: str) -> Json:
    """The whole message of a turn, as a request without streaming gets it."""
    text = "".join(deltas(turn))
    content: list[Json] = []
    if turn.thinking:
        content.append({"type": "thinking", "thinking": turn.thinking, "signature": "c2lnbmVk"})
    if text:
        content.append({"type": "text", "text": text})
    content += [
        {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex}", "name": tool["name"], "input": tool.get("input", {})}
        for tool in turn.tools
    ]
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": "tool_use" if turn.tools else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 10},
    }


def events(turn: Turn, model: str) -> Iterator[Json]:
    """The events that stream the same message; a turn that hangs has none after its deltas."""
    whole = answer(turn, model)
    yield {"type": "message_start", "message": whole | {"content": [], "stop_reason": None}}
    for index, block in enumerate(whole["content"]):
        empty, deltas_of_block = _streamed(turn, block)
        yield {"type": "content_block_start", "index": index, "content_block": block | empty}
        for delta in deltas_of_block:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        if turn.hang:
            return
        yield {"type": "content_block_stop", "index": index}
    if not turn.hang:
        end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        yield {"type": "message_delta", "delta": end, "usage": whole["usage"]}
        yield {"type": "message_stop"}


def _streamed(turn: Turn, block: Json) -> tuple[Json, list[Json]]:
    """The fields that are empty at the start of a block, and the deltas that fill them."""
    if block["type"] == "text":
        return {"text": ""}, _text_deltas(turn)
    if block["type"] == "thinking":
        thinking = {"type": "thinking_delta", "thinking": block["thinking"]}
        signature = {"type": "signature_delta", "signature": block["signature"]}
        return {"thinking": "", "signature": ""}, [thinking, signature]
    return {"input": {}}, _input_deltas(block["input"])


def _text_deltas(turn: Turn) -> list[Json]:
    return [{"type": "text_delta", "text": piece} for piece in deltas(turn)]


def _input_deltas(value: Json) -> list[Json]:
    written = json.dumps(value)
    half = len(written) // 2
    return [{"type": "input_json_delta", "partial_json": part} for part in (written[:half], written[half:])]


def _encode(event: Json, ascii_only: bool) -> bytes:
    """One event as it goes over the wire."""
    try:
        data = json.dumps(event, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # a lone surrogate exists only escaped
        data = json.dumps(event).encode()
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data)


class ModelApi:
    """The running stand-in, as `serve` hands it out."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}"

    def requests(self) -> list[Json]:
        """What has come in so far, oldest first.

        Each has `method`, `path` (without the query), `body` (the parsed JSON, or None) and `authenticated`
        (whether FAKE_KEY came with it). The key itself is not kept.
        """
        with self._server.lock:
            return list(self._server.seen)

    def forget(self) -> None:
        """Drop the requests that have come in so far."""
        with self._server.lock:
            self._server.seen.clear()


class _Server(ThreadingHTTPServer):
    """Remembers its open connections, so that ending it also ends the streams that hang."""

    request_queue_size = 128  # many runs may start at once

    def __init__(self, port: int, scripts: Mapping[str, list[Json]] | None) -> None:
        self.scripts = scripts
        self.lock = threading.Lock()
        self.seen: list[Json] = []
        self.connections: set[Any] = set()
        self.ending = threading.Event()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away is part of many tests; any other failure is a mistake here and shall be seen.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def end(self) -> None:
        """Stops accepting and wakes every thread that waits or reads."""
        self.ending.set()
        self.shutdown()
        with self.lock:
            for connection in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a delta leaves when it is written
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged; `ModelApi.requests` tells what came."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self._record(None)
        if self.path == "/":
            self._json(200, {})
        else:
            self._error(404, f"nothing at {self.path}")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        seen = self._record(body)
        if not isinstance(body, dict):
            self._error(400, "the body is not a JSON object")
        elif not seen["authenticated"]:
            self._error(401, "invalid x-api-key")
        elif seen["path"] == "/v1/messages/count_tokens":
            self._json(200, {"input_tokens": len(raw) // 4})
        elif seen["path"] == "/v1/messages":
            self._messages(body)
        else:
            self._error(404, f"nothing at {self.path}")

    def _record(self, body: Any) -> Json:
        sent = (self.headers.get("x-api-key"), self.headers.get("authorization"))
        record = {
            "method": self.command,
            "path": self.path.partition("?")[0],
            "body": body,
            "authenticated": FAKE_KEY in sent or f"Bearer {FAKE_KEY}" in sent,
        }
        with self.server.lock:
            self.server.seen.append(record)
        return record

    def _messages(self, body: Json) -> None:
        try:
            turn = choose_turn(body["messages"], self.server.scripts)
        except (ValueError, TypeError, KeyError) as error:
            self._error(400, f"the prompt's {MARKER}...}} is wrong: {error}")
            return
        self._pause(turn.first_delay)
        if turn.hang == "before":
            self._hang()
        elif turn.error:
            self._error(turn.error, turn.message, turn.headers)
        elif body.get("stream"):
            self._stream(turn, body["model"])
        else:
            self._json(200, answer(turn, body["model"]))

    def _stream(self, turn: Turn, model: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, event in enumerate(events(turn, model)):
            if event["type"] == "content_block_delta":
                self._pause(turn.delay)
                while turn.gate and number > 2 and not os.path.exists(turn.gate):
                    self._pause(0.01)
            self._chunks(_encode(event, turn.ascii), turn.wire_bytes)
        if turn.hang == "cut":
            self.connection.shutdown(socket.SHUT_WR)  # so that the deltas are read before the end
            self._hang()
        elif turn.hang:
            self._hang()
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _chunks(self, data: bytes, size: int) -> None:
        step = size or len(data)
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def _pause(self, seconds: float) -> None:
        if seconds and self.server.ending.wait(seconds):
            raise ConnectionAbortedError("the stand-in is ending")

    def _hang(self) -> None:
        """Says nothing more until the client goes away or the stand-in ends."""
        self.close_connection = True
        self.connection.recv(1)

    def _error(self, status: int, message: str, headers: Json | None = None) -> None:
        kind = ERROR_TYPES.get(status, "api_error")
        self._json(status, {"type": "error", "error": {"type": kind, "message": message}}, headers)

    def _json(self, status: int, value: Json, headers: Json | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, str(text))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serve(port: int = 0, scripts: Mapping[str, list[Json]] | None = None) -> Iterator[ModelApi]:
    """Runs the stand-in on a loopback port (0: any free one) until the block ends. For `scripts` see choose_turn."""
    server = _Server(port, scripts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield ModelApi(server)
    finally:
        server.end()
        thread.join()


def main() -> None:
    """Serves until interrupted."""
    parser = argparse.ArgumentParser(description="A loopback stand-in for the model's Messages API.")
    parser.add_argument("--port", type=int, default=0)
    with serve(parser.parse_args().port) as api, suppress(KeyboardInterrupt):
        print("READY", api.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
