"""Limits of size and time where bytes arrive: bodies, WebSockets, answers of machines, Markdown, lists, and keys."""

from __future__ import annotations

import gzip
import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from simple_websocket import Client

from occ_app.api.executions import listed
from occ_app.client.agent_client import AgentClient
from occ_app.database import database as db
from occ_app.errors import Refused, Unavailable, Unreachable
from occ_app.executions import queries as executions
from occ_app.hub.pages import markdown
from occ_app.streams.followers import StreamLimit
from occ_app.system.timestamps import iso
from occ_app.web import heads
from occ_app.web.shares import Shares
from tests.conftest import Occ, command_line, make_zip, shared_agent, steps, wait_until
from tests.hub_app import hub_app
from tests.real_hub import Hub, hub_in

JSON = {"Content_Type": "application/json"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    with shared_agent(tmp_path_factory.mktemp("limits")) as agent:
        agent.workspace()
        yield agent


def web_seconds(agent: Occ) -> float:
    """The processor time of the agent's web process, in seconds."""
    (pid,) = (pid for pid, line in agent.commands().items() if "occ_app.wsgi" in line)
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


@pytest.mark.parametrize(
    "body",
    [
        "{" + ",".join(f'"k{number}":1' for number in range(700_000)) + "}",
        "{" + ",".join(f'"k{number}\\\\":1' for number in range(500_000)) + "}",
        '{"labels":[' + "1," * 4_000_000 + "1]}",
        "[" * 4_000_000,
        '"' + '\\"' * 4_000_000,
    ],
    ids=["names", "names with backslashes", "values", "brackets", "a string without an end"],
)
def test_a_body_of_many_parts_is_refused_at_once_and_briefly(served: Occ, body: str) -> None:
    begun = web_seconds(served)
    reply = served.request("POST", "/execute", body=body.encode(), **JSON)
    assert (reply.status, reply.json()["code"]) == (400, "INVALID_JSON")
    assert len(reply.data) < 10_000
    assert web_seconds(served) - begun < 5


def test_a_long_prompt_of_quotes_and_commas_is_still_taken(served: Occ) -> None:
    prompt = steps({"say": "yes"}, *({"say": '",\\'} for _ in range(10_000)))
    assert served.run(prompt)[-1].name == "complete"


def test_names_of_a_request_are_cut_in_the_answer(served: Occ) -> None:
    wrong = {f"{'x' * 1000}{number}": 1 for number in range(40)}
    reply = served.request("POST", "/execute", json_body=wrong)
    assert reply.status == 422
    details = reply.json()["details"]
    assert len(details) <= 20
    assert max(map(len, details)) <= 100


def test_a_small_body_has_a_small_limit(hub: Hub) -> None:
    reply = hub.request("POST", "/keys", json_body={"name": "x" * 100_000})
    assert (reply.status, reply.json()["code"]) == (413, "BODY_TOO_LARGE")
    assert "65536" in reply.json()["message"]


def test_messages_to_a_stream_are_not_kept(served: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    stream, _ = served.under_way(steps({"say": "0 "}, {"wait": str(gate)}, {"say": "1"}), "talked")
    web = next(process for process in served.processes() if "occ_app.wsgi" in " ".join(command_line(process)))
    url = served.url.replace("http://", "ws://") + "/executions/talked/ws"
    client = Client.connect(url, headers={"Authorization": f"Bearer {served.token}"})
    before = web.memory_info().rss
    for _ in range(20_000):
        client.send("x" * 4000)
    gate.touch()
    list(stream)
    wait_until(lambda: '"complete"' in (client.receive(timeout=5) or ""), "the end")
    assert web.memory_info().rss - before < 40_000_000


class _Machine(BaseHTTPRequestHandler):
    """Answer every GET with `content`, compressed unless `trickles`, when a byte comes every 10 ms."""

    content = b""
    trickles = False

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.send_response(200)
        if not self.trickles:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        try:
            if not self.trickles:
                self.wfile.write(self.content)
            while self.trickles:
                self.wfile.write(b" ")
                time.sleep(0.01)
        except OSError:
            return


def machine(content: bytes = b"", *, trickles: bool = False) -> Iterator[AgentClient]:
    handler = type("Handler", (_Machine,), {"content": content, "trickles": trickles})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    client = AgentClient(f"http://127.0.0.1:{server.server_address[1]}", "made-up")
    yield client
    client.close()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bomb() -> Iterator[AgentClient]:
    yield from machine(gzip.compress(bytes(200_000_000), 9))


@pytest.fixture
def trickling() -> Iterator[AgentClient]:
    yield from machine(trickles=True)


def test_what_a_machine_compressed_is_not_unpacked(bomb: AgentClient) -> None:
    output = io.BytesIO()
    bomb.archive("work", output, 1_000_000)
    assert output.tell() < 1_000_000
    with pytest.raises(Unreachable):
        bomb.health()


def test_an_archive_of_a_machine_is_held_to_its_limit(bomb: AgentClient) -> None:
    output = io.BytesIO()
    with pytest.raises(Unreachable, match="1000 bytes"):
        bomb.archive("work", output, 1000)
    assert output.tell() < 200_000


def test_a_trickled_archive_has_a_deadline(trickling: AgentClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("occ_app.client.bodies._BODY_SECONDS", 0.5)
    with pytest.raises(Unreachable):
        trickling.archive("work", io.BytesIO())


@pytest.mark.parametrize(
    "text",
    [
        "|" + "a|" * 2000 + "\n|" + "-|" * 2000 + "\n" + "|\n" * 5000,
        "a" + "|a" * 2000 + "\n-" + "|-" * 2000 + "\n" + "x\n" * 5000,
        "> |" + "a|" * 2000 + "\n> |" + "-|" * 2000 + "\n" + "> |\n" * 5000,
        "![" * 15_000,
        "[" * 31_000,
        "-" * 31_000,
        "- | " * 7_000,
    ],
    ids=["table", "table without edges", "quoted table", "images", "brackets", "dashes", "dashes and bars"],
)
def test_markdown_is_rendered_in_bounded_time(text: str) -> None:
    begun = time.process_time()
    markdown.html(text[:31_900])
    assert time.process_time() - begun < 1.0


def test_an_ordinary_table_stays_one() -> None:
    rows = "\n".join(f"| {number} | b | c | d |" for number in range(500))
    assert "<table>" in markdown.html(f"| a | b | c | d |\n|---|---|---|---|\n{rows}\n")


def test_a_listed_error_message_has_at_most_64_kib(served: Occ) -> None:
    served.run("x", executionId="listed")
    execution = executions.get(served.database, "listed", None)
    assert listed(execution) is execution
    short = listed(replace(execution, error_message="é" * 100_000))
    assert len((short.error_message or "").encode()) == 1 << 16


def test_a_holder_has_its_share_of_places_and_no_more() -> None:
    places = Shares(4, 2, "")
    place = places.place("one")
    places.place("one")
    with pytest.raises(Unavailable):
        places.place("one")
    places.place("two")
    places.place(None)
    with pytest.raises(Unavailable):
        places.place(None)
    place.close()
    places.place("three", 1)
    with pytest.raises(Unavailable):
        places.place(None)


def test_a_key_holds_at_most_half_of_the_threads_that_read_files(tmp_path: Path) -> None:
    """On a hub such a request waits for a machine, and for a snapshot everywhere."""
    with hub_app(tmp_path) as hub:
        mine, theirs = hub.key("mine", "client"), hub.key("theirs", "client")
        listed = hub.call("GET", "/keys").json
        assert listed is not None
        key_id = next(key["keyId"] for key in listed["keys"] if key["name"] == "mine")
        places = hub.app.extensions["occ"].file_reads
        held = [places.place(key_id) for _ in range(24)]
        paths = ("/executions/x/changes", "/executions/x/diff", "/executions/x/files/a", "/workspaces/x/files/a")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("occ_app.web.shares._PATIENCE_SECONDS", 0.01)
            assert {hub.call("GET", path, mine).status_code for path in paths} == {503}
        assert {hub.call("GET", path, theirs).status_code for path in paths} == {404}
        for place in held:
            place.close()
        assert {hub.call("GET", path, mine).status_code for path in paths} == {404}
        assert not places._held


def test_no_more_than_some_wait_for_a_place() -> None:
    """A thread that waits for a place is a thread that nobody else has."""
    places = Shares(2, 1, "", waiters=4)
    held = [places.place("one"), places.place("two")]
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(places.place, holder) for holder in ("one", "one", "two", "two")]
        wait_until(lambda: places._waiting.total() == 4, "four to wait")
        for holder in ("one", "three", None):
            with pytest.raises(Unavailable):
                places.place(holder)
        for place in held:
            place.close()
        for each in as_completed(waiting):
            each.result().close()
    assert not places._waiting
    places.place("three")


def test_a_key_takes_at_most_half_of_the_streams() -> None:
    streams = StreamLimit(4)
    mine = [streams.place("mine"), streams.place("mine")]
    with pytest.raises(Unavailable):
        streams.place("mine")
    with streams.place("theirs"), streams.place(None):
        assert streams.open == 4
        with pytest.raises(Unavailable):
            streams.place("other")
    mine[0].close()
    streams.place("mine")
    with pytest.raises(Unavailable):
        streams.place("mine")
    assert streams.open == 2
    StreamLimit(1).place("only")


def test_slow_log_ins_take_no_place_of_others(hub_with_box: Hub) -> None:
    hub = hub_with_box
    hub.agent("box")
    host, port = hub.url.removeprefix("http://").split(":")
    start = (
        "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        "Content-Length: 9000\r\n\r\nkey="
    )
    slow = [socket.create_connection((host, int(port)), timeout=10) for _ in range(130)]
    try:
        for one in slow:
            one.sendall(start.encode())
        begun = time.monotonic()
        hub.client.upload("work", make_zip({"a.txt": "a"}))
        assert list(hub.client.execute("work", "x"))[-1].name == "complete"
        assert time.monotonic() - begun < heads.BODY_SECONDS  # after which the slow ones would have made room
        assert hub.seen("box")["state"] == "online"
    finally:
        for one in slow:
            one.close()


def test_a_wrong_agent_key_or_token_is_logged_and_slow(tmp_path: Path) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    upgrade["Sec_WebSocket_Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    with hub_in(tmp_path) as hub:
        hub.start()
        for method, path, headers in (
            ("POST", "/api/agents/register", {}),
            ("POST", "/api/agents/agent-0/heartbeat", {}),
            ("GET", "/api/agents/agent-0/link", upgrade),
        ):
            logged = (hub.home / "logs/web.log").read_text().count("wrong token")
            begun = time.monotonic()
            assert hub.request(method, path, token="made-up", **headers).status == 401
            assert time.monotonic() - begun >= 0.1
            assert (hub.home / "logs/web.log").read_text().count("wrong token") == logged + 1


def test_an_expired_key_s_streams_end(hub_with_box: Hub) -> None:
    hub = hub_with_box
    hub.agent("box")
    client = hub.client_with(hub.key("brief", "client"))
    client.upload("work", make_zip({"a.txt": "a"}))
    soon = iso(datetime.now(UTC) + timedelta(seconds=4))
    with db.Database(hub.home / "occ.db").write() as connection:
        connection.execute("UPDATE keys SET expires_at = :soon WHERE name = 'brief'", {"soon": soon})
    stream = client.execute("work", steps({"say": "begun "}, {"wait": "go"}), executionId="e1")
    with pytest.raises(Refused) as refused:
        list(stream)
    assert refused.value.status == 401
    hub.client.cancel("e1")
