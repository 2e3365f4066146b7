"""A Slack on loopback: the Web API as far as the hub uses it, and Socket Mode, with every fault that a test asks for.

Checked against Slack's documentation (api.slack.com/methods, /apis/socket-mode, /reference/block-kit): the names of
methods and fields, `ts` as the id of a message, `thread_ts`, the envelope with `envelope_id` and its acknowledgement,
`hello` and `disconnect`, errors as `{"ok": false, "error": …}` with status 200, 429 with `Retry-After`, a text of at
most 4,000 bytes in chat.update, 12,000 characters of markdown and 50 blocks in a message, metadata that
conversations.replies returns with `include_all_metadata`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass(frozen=True)
class Call:
    """A call of the Web API; `at` is on the monotonic clock."""

    method: str
    values: dict[str, Any]
    token: str
    at: float


@dataclass
class FakeSlack:
    """What was called and is shown. `faults` has the next answers of a method: an error's name, or a Retry-After."""

    port: int = 0
    calls: list[Call] = field(default_factory=list)
    messages: dict[str, dict[str, Any]] = field(default_factory=dict)  # by ts
    ephemeral: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, list[str | float]] = field(default_factory=lambda: defaultdict(list))
    dialogs: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    downloads: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)  # answers, by path
    fetched: list[tuple[str, str]] = field(default_factory=list)  # the path and the Authorization of each
    channels: dict[str, dict[str, Any]] = field(default_factory=dict)  # more of conversations.info, by id
    swallow: set[str] = field(default_factory=set)  # methods that act, and whose answer is lost, once
    sockets: list[socket.socket] = field(default_factory=list)
    acks: list[str] = field(default_factory=list)
    pongs: bool = True
    says_hello: bool = True
    lock: threading.RLock = field(default_factory=threading.RLock)
    _ts: int = 0
    _envelopes: int = 0

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/"

    def new_ts(self) -> str:
        with self.lock:
            self._ts += 1
            return f"1790000000.{self._ts:06}"

    def shown(self, channel: str | None = None) -> list[dict[str, Any]]:
        """The messages of the bot, oldest first."""
        with self.lock:
            return [dict(one) for _, one in sorted(self.messages.items()) if channel in (None, one["channel"])]

    def called(self, method: str) -> list[Call]:
        with self.lock:
            return [call for call in self.calls if call.method == method]

    # ---- The Web API

    def answer(self, method: str, values: dict[str, Any], token: str) -> tuple[int, dict[str, str], dict[str, Any]]:
        """The status, headers and JSON of a call."""
        with self.lock:
            self.calls.append(Call(method, values, token, time.monotonic()))
            if self.faults[method]:
                fault = self.faults[method].pop(0)
                if isinstance(fault, (int, float)):
                    return 429, {"Retry-After": str(fault)}, {"ok": False, "error": "ratelimited"}
                return 200, {}, {"ok": False, "error": fault}
            known = getattr(self, f"_{method.replace('.', '_')}", None)
            return 200, {}, {"ok": False, "error": "unknown_method"} if known is None else known(values)

    def _auth_test(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "team_id": "T1", "team": "Acme", "user_id": "UBOT"}

    def _apps_connections_open(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "url": f"ws://127.0.0.1:{self.port}/link?ticket=1"}

    def _chat_postMessage(self, values: dict[str, Any]) -> dict[str, Any]:
        if error := _wrong(values, 40_000):
            return {"ok": False, "error": error}
        ts = self.new_ts()
        self.messages[ts] = {**values, "ts": ts, "updates": 0}
        return {"ok": True, "ts": ts, "channel": values["channel"]}

    def _chat_update(self, values: dict[str, Any]) -> dict[str, Any]:
        if error := _wrong(values, 4_000):
            return {"ok": False, "error": error}
        if values["ts"] not in self.messages:
            return {"ok": False, "error": "message_not_found"}
        former = self.messages[values["ts"]]
        self.messages[values["ts"]] = {**former, **values, "updates": former["updates"] + 1}
        return {"ok": True, "ts": values["ts"], "channel": values["channel"]}

    def _chat_postEphemeral(self, values: dict[str, Any]) -> dict[str, Any]:
        self.ephemeral.append(values)
        return {"ok": True, "message_ts": self.new_ts()}

    def _conversations_replies(self, values: dict[str, Any]) -> dict[str, Any]:
        assert str(values.get("include_all_metadata")).lower() in ("true", "1")
        thread = [one for one in self.shown(values["channel"]) if one.get("thread_ts") == values["ts"]]
        return {"ok": True, "messages": thread, "has_more": False}

    def _conversations_history(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "messages": [one for one in self.shown(values["channel"]) if "thread_ts" not in one]}

    def _conversations_info(self, values: dict[str, Any]) -> dict[str, Any]:
        about = {"is_private": False, "is_im": False, "is_mpim": False, "is_ext_shared": False}
        return {"ok": True, "channel": {"id": values["channel"], **about, **self.channels.get(values["channel"], {})}}

    def _conversations_open(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "channel": {"id": f"D{values['users']}"}}

    def _views_open(self, values: dict[str, Any]) -> dict[str, Any]:
        self.dialogs.append(values)
        return {"ok": True, "view": {"id": f"V{len(self.dialogs)}"}}

    def _files_getUploadURLExternal(self, values: dict[str, Any]) -> dict[str, Any]:
        self.files.append({"name": values["filename"], "length": int(values["length"])})
        number = len(self.files) - 1
        return {"ok": True, "upload_url": f"http://127.0.0.1:{self.port}/upload/{number}", "file_id": f"F{number}"}

    def _files_completeUploadExternal(self, values: dict[str, Any]) -> dict[str, Any]:
        (file,) = json.loads(values["files"]) if isinstance(values["files"], str) else values["files"]
        shared = {"channel": values.get("channel_id"), "thread_ts": values.get("thread_ts")}
        self.files[int(file["id"][1:])].update(shared)
        return {"ok": True, "files": [{"id": file["id"]}]}

    # ---- Socket Mode

    def send(self, kind: str, payload: dict[str, Any], **more: Any) -> str:
        """Send an envelope over the newest connection; returns its id."""
        with self.lock:
            self._envelopes += 1
            envelope = f"envelope-{self._envelopes}"
            self.sockets[-1].sendall(
                _frame(1, json.dumps({"envelope_id": envelope, "type": kind, "payload": payload, **more}))
            )
        return envelope

    def disconnect(self) -> None:
        """Ask for another connection, and keep this one open, as Slack may."""
        self.sockets[-1].sendall(_frame(1, json.dumps({"type": "disconnect", "reason": "refresh_requested"})))

    def serve_socket(self, connection: socket.socket, key: str) -> None:
        """Be the server of a WebSocket until it is closed."""
        accept = base64.b64encode(hashlib.sha1(key.encode() + _WEBSOCKET).digest()).decode()  # noqa: S324 - RFC 6455
        lines = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}", "", "")
        connection.sendall("\r\n".join(("HTTP/1.1 101 Switching Protocols", *lines)).encode())
        with self.lock:
            if self.says_hello:
                connection.sendall(_frame(1, json.dumps({"type": "hello"})))
            self.sockets.append(connection)
        received = b""
        while True:
            try:
                more = connection.recv(65536)
            except OSError:
                return
            if not more:
                return
            received += more
            while (found := _unframed(received)) is not None:
                opcode, content, received = found
                if opcode == 1:
                    self.acks.append(json.loads(content)["envelope_id"])
                elif opcode == 9 and self.pongs:
                    with contextlib.suppress(OSError), self.lock:
                        connection.sendall(_frame(10, content.decode()))


def _wrong(values: dict[str, Any], longest: int) -> str | None:
    blocks = values.get("blocks") or []
    if len(values.get("text", "").encode()) > longest:
        return "msg_too_long"
    if len(blocks) > 50 or sum(len(one.get("text", "")) for one in blocks if one["type"] == "markdown") > 12_000:
        return "msg_blocks_too_long"
    texts = [one["text"]["text"] for one in blocks if one["type"] == "section"]
    return "invalid_blocks" if any(not 0 < len(text) <= 3000 for text in texts) else None


def _frame(opcode: int, text: str) -> bytes:
    content = text.encode()
    size = bytes([len(content)]) if len(content) < 126 else b"\x7e" + struct.pack(">H", len(content))
    return bytes([0x80 | opcode]) + size + content


def _unframed(received: bytes) -> tuple[int, bytes, bytes] | None:
    """The first masked frame, and the rest; None while it is not whole."""
    if len(received) < 6:
        return None
    size, at = received[1] & 127, 2
    if size == 126:
        size, at = struct.unpack(">H", received[2:4])[0], 4
    if len(received) < at + 4 + size:
        return None
    mask, content = received[at : at + 4], received[at + 4 : at + 4 + size]
    return received[0] & 15, bytes(byte ^ mask[i % 4] for i, byte in enumerate(content)), received[at + 4 + size :]


@contextlib.contextmanager
def fake_slack() -> Iterator[FakeSlack]:
    """A Slack for the time of the block."""
    state = FakeSlack()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.startswith("/link"):
                self.close_connection = True
                state.serve_socket(self.connection, self.headers["Sec-WebSocket-Key"])
                return
            if self.path in state.downloads:
                state.fetched.append((self.path, self.headers.get("Authorization", "")))
                status, headers, content = state.downloads[self.path]
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # who closes before the end is no news
                    self.wfile.write(content)
                return
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            if parts.path.startswith("/upload/"):
                state.files[int(parts.path.rsplit("/", 1)[-1])]["content"] = body
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"OK")
                return
            if (self.headers.get("Content-Type") or "").startswith("application/json"):
                values = json.loads(body)
            else:
                values = dict(parse_qsl(f"{parts.query}&{body.decode()}"))
            method = parts.path.rsplit("/", 1)[-1]
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            status, headers, reply = state.answer(method, values, token)
            if method in state.swallow:
                state.swallow.discard(method)
                self.close_connection = True
                return
            content = json.dumps(reply).encode()
            self.send_response(status)
            for name, value in {
                **headers,
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A caller that was killed is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        for one in state.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        server.shutdown()
        server.server_close()
        thread.join()
