"""Text from elsewhere on a terminal and in logs: shown, never obeyed, and unchanged where it is stored or piped."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from occ_app.system.foreign_text import visible, visible_line
from occ_app.system.logs import formatter

ROOT = Path(__file__).parent.parent
EVIL = "\x1b]0;PWN\x07\x1b]52;c;aGVsbG8=\x07\x1b[2J\x9b31m\u202egpj.exe\u2066"
OBEYED = ("\x1b]0", "\x1b]52", "\x1b[2J", "\x07", "\x9b", "\u202e", "\u2066")
MOMENT = "2026-01-01T00:00:00.000Z"

EXECUTION = {
    "executionId": "x" + EVIL,
    "workspaceId": EVIL,
    "state": EVIL,
    "prompt": EVIL + "\nstate  succeeded",
    "createdAt": MOMENT,
    "startedAt": None,
    "finishedAt": None,
    "waitsFor": EVIL,
    "errorCode": EVIL,
    "errorMessage": EVIL,
    "agentId": EVIL,
    "costUsd": None,
    "position": None,
}
WORKSPACE = {"workspaceId": EVIL, "name": EVIL, "files": 1, "bytes": 1, "updatedAt": MOMENT, "agentId": EVIL}
SNIPPET = {"in": EVIL, "pieces": [{"text": EVIL, "hit": True}]}


def event(seq: int, name: str, data: dict[str, Any]) -> str:
    return f"id: {seq}\nevent: {name}\ndata: {json.dumps({**data, 'timestamp': 1})}\n\n"


STREAM = (
    event(1, "output", {"chunk": "hi " + EVIL})
    + event(2, "tool", {"toolUseId": "t", "name": "N" + EVIL, "input": {"file_path": EVIL}})
    + event(3, "tool", {"toolUseId": "t", "result": EVIL, "isError": True})
    + event(4, "status", {"state": "retrying", "message": EVIL})
    + event(6, "gap", {"fromSeq": 5, "toSeq": 6, "reason": EVIL})
    + event(7, "error", {"code": "CLAUDE_ERROR", "message": EVIL, "sessionId": EVIL})
)


class Server(BaseHTTPRequestHandler):
    """A server that answers whatever it is asked with text that a terminal would obey."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, content: str, kind: str = "application/json") -> None:
        body = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path.endswith("/events") or path == "/execute":
            self.answer(200, STREAM, "text/event-stream")
        elif path in ("/executions", "/workspaces", "/search"):
            found = [{"execution": EXECUTION, "snippets": [SNIPPET]}]
            lists = {"executions": [EXECUTION], "workspaces": [WORKSPACE], "results": found}
            self.answer(200, json.dumps({**lists, "next": None, "unindexed": 0}))
        elif path.startswith("/executions/") and path.endswith("x"):
            self.answer(200, json.dumps(EXECUTION))
        else:
            self.answer(500, json.dumps({"status": "error", "code": "X", "message": "no " + EVIL}))

    do_POST = do_DELETE = do_GET


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "OCC_HOME": str(folder / "occ"), "OCC_TOKEN": "t"}


def on_a_terminal(folder: Path, *words: str, colour: bool = False) -> str:
    """Everything that a command prints to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "occ_app.cli", *words],
        env=environment(folder) | {"TERM": "xterm", "NO_COLOR": "" if colour else "1", "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # as Linux says that the other side is closed
            pass
    os.close(ours)
    return shown.decode()


COMMANDS = [
    ("run", "--workspace", "w", "prompt"),
    ("jobs",),
    ("jobs", "show", "x"),
    ("jobs", "tail", "x"),
    ("jobs", "tail", "--follow", "x"),
    ("jobs", "search", "x"),
    ("jobs", "cancel", "nosuch" + EVIL),
    ("jobs", "show", "nosuch" + EVIL),
    ("jobs", "--limit", EVIL),
    ("workspaces", "list"),
    ("workspaces", "remove", "w"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words).replace(EVIL, "EVIL") for words in COMMANDS])
def test_a_terminal_shows_what_comes_from_elsewhere_and_obeys_none_of_it(
    url: str, tmp_path: Path, words: tuple[str, ...]
) -> None:
    shown = on_a_terminal(tmp_path, *words, *(() if "--limit" in words else ("--url", url)))
    assert [raw for raw in OBEYED if raw in shown] == []
    assert "\\x1b]0;PWN" in shown or words == ("workspaces", "list")


def test_output_that_is_piped_keeps_every_character(url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "occ_app.cli", "jobs", "tail", "x", "--url", url],
        env=environment(tmp_path) | {"PYTHONUTF8": "1"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == f"hi {EVIL}\n"
    assert b"\x1b" not in done.stderr


def test_visible_text_hides_nothing() -> None:
    assert visible("a\tb\n\x1b[2J\x85\u202e\r é \u200f") == "a\tb\n\\x1b[2J\\x85\\u202e\\x0d é \u200f".replace(
        "\\x0d", "\\r"
    )
    assert visible_line("a\tb\nc") == "a\\tb\\nc"
    assert visible("\ud800") == "\\ud800"


def test_a_log_line_cannot_command_a_terminal_or_forge_another() -> None:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(formatter("web", "text"))
    log = logging.Logger("urllib3.connectionpool")
    log.addHandler(handler)
    forged = "2026-01-01T00:00:00.000Z INFO web - occ: all is well"
    log.warning("refused: %s", f"{EVIL}\r\n{forged}")
    try:
        raise ValueError(f"{EVIL}\n{forged}")
    except ValueError:
        log.exception("it failed: %s", EVIL)
    lines = said.getvalue().split("\n")
    assert [raw for raw in OBEYED if raw in said.getvalue()] == []
    assert not [line for line in lines[1:] if line.startswith("2026-01-01T00")]
    assert lines[0].endswith(forged)


def test_only_one_module_of_the_commands_prints() -> None:
    printers = [
        path.name
        for path in (ROOT / "occ_app" / "cli").glob("*.py")
        if any(call in path.read_text() for call in ("click.echo(", "secho(", "sys.stdout.write("))
    ]
    assert printers == ["output.py"]


def test_every_process_logs_through_the_one_formatter() -> None:
    """No other module makes a formatter or a basicConfig."""
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("occ_app", "occ_worker")
        for path in (ROOT / folder).rglob("*.py")
        if any(word in path.read_text() for word in ("basicConfig", "logging.Formatter"))
    }
    assert found == {"occ_app/system/logs.py"}


def test_a_search_is_bold_where_it_matches(url: str, tmp_path: Path) -> None:
    shown = on_a_terminal(tmp_path, "jobs", "search", "x", "--url", url, colour=True)
    assert "\x1b[1m\\x1b]0;PWN" in shown
    assert "\x1b]0" not in shown
