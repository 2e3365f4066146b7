"""The policy of versions: a hub speaks with agents one minor version older and newer, here the real 0.1.0.

What 0.1.0 sent is replayed to this version, and its replies answer this version (tests/old_peer.py). A field that is
renamed, or a new one that 0.1.0 refuses, fails here.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from occ_app.claude.program import Cli
from occ_app.client.hub_client import HubClient
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.executions import events as event_rows
from occ_app.executions import lifecycle, queries
from occ_app.executions.records import Execution, Request
from occ_app.home import notes, state
from occ_app.hub import placement, registrations
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.streams.doorbell import Ringer
from occ_app.supervisor import registration
from occ_app.system.process_identity import own_identity
from occ_app.web.handover import HandedOver
from occ_worker.control.heartbeat import Heartbeat
from occ_worker.control.link import LinkClient
from occ_worker.relay.context import RelayContext
from occ_worker.relay.relay import Relay
from tests.conftest import Occ, make_zip, shared_agent, wait_until
from tests.databases import make_database
from tests.hub_app import HubApp, hub_app
from tests.old_peer import TOKEN, Exchange, OldAgent, events_in, lacking, old_hub, recording, served

RECORDED = recording()
RUNS = RECORDED.to("agent", "POST /execute")


# -- an agent of 0.1.0 at this hub


@dataclass
class Joined:
    """A hub's application, to which an agent of 0.1.0 is linked."""

    hub: HubApp
    agent: OldAgent
    agent_id: str
    token: str
    context: RelayContext

    def send(self, exchange: Exchange) -> Any:
        """Send what the agent sent, as the registered one; returns the JSON of the reply, whose status is the same."""
        path = re.sub(r"agent-[0-9a-f]{12}", self.agent_id, exchange.path)
        reply = self.hub.call(exchange.method, path, self.token, json=json.loads(exchange.body))
        assert reply.status_code == exchange.status, reply.text
        return reply.json

    def workspace(self, workspace_id: str) -> None:
        archive = make_zip({"a.txt": "hello\n"}).getvalue()
        digest = hashlib.sha256(archive).hexdigest()
        (self.hub.config.zips / f"{digest}.zip").write_bytes(archive)
        self.hub.workspace(workspace_id)
        with self.hub.database.write() as connection:
            connection.execute(
                "UPDATE workspaces SET zip = :zip, key_id = 'key-ab', upload = 7 WHERE workspace_id = :id",
                {"zip": digest, "id": workspace_id},
            )

    def relay(self, run: Exchange) -> Execution:
        """Relay an execution with the ids of a recorded one; returns its row at the end."""
        asked = json.loads(run.body)
        self.workspace(asked["workspaceId"])
        body = Request(
            *(asked["executionId"], asked["workspaceId"], asked["prompt"], asked.get("timeoutSeconds", 60), 60),
            *(asked.get("model"), None, None, None, "hash", "key-ab"),
        )
        lifecycle.create(self.hub.database, body, max_queue=10)
        found = placement.claim(
            *(self.hub.database, self.context.agents, own_identity(), self.context.calls.reached), relays=9
        )
        assert found is not None
        Relay(self.context, found).run()
        return queries.get(self.hub.database, asked["executionId"])


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Joined]:
    with contextlib.ExitStack() as held:
        hub = held.enter_context(hub_app(tmp_path))
        [register] = RECORDED.to("hub", "register")
        key = hub.key("machines", "agent")
        reply = hub.call("POST", register.path, key, json=json.loads(register.body))
        assert reply.status_code == register.status, reply.text
        assert not lacking(register.content, reply.json)
        agent_id, token = reply.get_json()["agentId"], reply.get_json()["token"]
        agent = OldAgent(link(hub, agent_id, token), RECORDED.to("agent"))
        held.callback(agent.close)
        calls_folder = hub.config.run / "links"
        wait_until((calls_folder / agent_id).exists, "the link")
        agents, stop = Agents(hub.database, 30), threading.Event()
        calls, readers = Calls(agents, calls_folder), Ringer(hub.config.run / "tail")
        held.callback(readers.close)
        context = RelayContext(
            *(hub.config, registrations.hub_id(hub.database), hub.database, agents, calls, readers),
            *(lambda _: time.sleep(0.01), (), stop.is_set),
        )
        timer = threading.Timer(60, stop.set)
        timer.start()
        held.callback(timer.cancel)
        yield Joined(hub, agent, agent_id, token, context)


def link(hub: HubApp, agent_id: str, token: str) -> socket.socket:
    """Have the hub take the recorded handshake; returns the agent's end of the connection."""
    [handshake] = RECORDED.to("hub", "/link")
    mine, other = socket.socketpair()
    mine.settimeout(60)
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": f"/api/agents/{agent_id}/link",
        "wsgi.url_scheme": "http",
        "SERVER_NAME": "hub",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "werkzeug.socket": other,
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in handshake.headers.items()},
        "HTTP_AUTHORIZATION": f"Bearer {token}",
    }
    with pytest.raises(HandedOver) as handed:
        list(hub.app.wsgi_app(environ, lambda *_: None))  # type: ignore[arg-type]
    reply = b""
    while b"\r\n\r\n" not in reply:
        reply += mine.recv(1)
    recorded = handshake.reply.decode().splitlines()
    assert set(recorded) <= set(reply.decode().splitlines())  # with the answer to the same key
    handed.value.stream.begin()
    return mine


def test_a_hub_answers_an_agent_of_0_1_0_as_its_own_did(joined: Joined) -> None:
    beats = RECORDED.to("hub", "heartbeat")
    assert [json.loads(each.body)["status"] for each in beats] == ["healthy", "stopping"]
    for beat, expected in zip(beats, ("online", "offline"), strict=True):
        assert not lacking(beat.content, joined.send(beat))
        [shown] = joined.hub.call("GET", "/agents").get_json()["agents"]
        assert (shown["name"], shown["version"], shown["workers"]["total"]) == ("box", "0.1.0", 5)
        assert shown["state"] == expected


@pytest.mark.parametrize("run", RUNS, ids=["answer", "tools", "failure", "cancel"])
def test_a_relay_gets_its_events_from_an_agent_of_0_1_0(joined: Joined, run: Exchange) -> None:
    row = joined.relay(run)
    stored = event_rows.after(joined.hub.database, row.number, 0)
    for each, (name, data) in zip(stored[1:], run.events, strict=True):  # the hub adds that the costs are exact
        assert each.name == name
        assert data == {key: value for key, value in json.loads(each.data).items() if key in data}
    final = run.events[-1][1]
    assert row.error_code == final.get("code")
    assert row.state == {None: "succeeded", "CLAUDE_EXIT": "failed"}.get(final.get("code"), "cancelled")
    assert (row.cost_usd, row.session_id) == (final.get("costUsd"), run.events[0][1]["sessionId"])
    record, upload, execute = joined.agent.requests[:3]
    assert (record.method, record.status, upload.status, execute.status) == ("GET", 404, 200, 200)
    RECORDED.check("ExecuteBody", json.loads(execute.body))
    assert json.loads(run.body).items() <= json.loads(execute.body).items()
    names = re.findall(rb'form-data; name="(\w+)"', upload.body)
    RECORDED.check("InitUpload", dict.fromkeys(map(bytes.decode, names), "overwrite"))


def test_a_hub_cancels_and_deletes_on_an_agent_of_0_1_0(joined: Joined) -> None:
    [cancel] = RECORDED.to("agent", "/cancel")
    [delete] = RECORDED.to("agent", "DELETE")
    agent = joined.context.agents.find(joined.agent_id)
    assert agent is not None
    client = joined.context.calls.client(agent)
    assert client.cancel(cancel.path.split("/")[2]) == cancel.content
    client.delete_workspace(delete.path.split("/")[2])
    assert [each.status for each in joined.agent.requests] == [202, 200]


# -- this agent at a hub of 0.1.0


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    with shared_agent(tmp_path_factory.mktemp("agent")) as occ:
        yield occ


def sent(agent: Occ, exchange: Exchange) -> http.client.HTTPResponse:
    """Send a recorded request with the agent's token; returns the reply, its body not yet read."""
    host, port = agent.url.removeprefix("http://").split(":")
    request = exchange.request.replace(TOKEN.encode(), agent.token.encode())
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request)
        reply = http.client.HTTPResponse(connection, method=exchange.method)
    reply.begin()
    return reply


def test_an_agent_answers_a_hub_of_0_1_0_as_its_own_did(agent: Occ) -> None:
    [cancel] = RECORDED.to("agent", "/cancel")
    cancelled = cancel.path.split("/")[2]
    assert len(agent.token) == len(TOKEN)
    for exchange in RECORDED.to("agent"):
        if exchange is cancel:
            continue
        with contextlib.closing(sent(agent, exchange)) as reply:
            assert reply.status == exchange.status
            if cancelled.encode() in exchange.body:
                wait_until(lambda: agent.client.execution(cancelled)["model"], "the CLI to start")
                with contextlib.closing(sent(agent, cancel)) as over:
                    assert (over.status, lacking(cancel.content, json.loads(over.read()))) == (cancel.status, [])
            content = reply.read()
        if exchange.path != "/execute":
            assert not lacking(exchange.content, json.loads(content)), content
            assert json.loads(content).get("code") == exchange.content.get("code")
            continue
        now = events_in(content)
        assert [name for name, _ in now] == [name for name, _ in exchange.events]
        for (_, recorded), (_, data) in zip(exchange.events, now, strict=True):
            assert not lacking(recorded, data)
            assert data.get("code") == recorded.get("code")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config(home=tmp_path / "home", api_key="occ_agent_made-up", remote_url="http://hub.example", name="box")
    config.make_folders()
    make_database(config.database)
    return config


def test_an_agent_registers_and_beats_at_a_hub_of_0_1_0(config: Config) -> None:
    with old_hub(RECORDED) as hub, contextlib.closing(Database(config.database)) as rows:
        config = replace(config, remote_url=hub.url)
        known = registration.register(config, HubClient(hub.url), 7701, Cli(None, None)).state
        [register] = RECORDED.to("hub", "register")
        assert (known.agent_id, known.token) == (register.content["agentId"], register.content["token"])
        notes.note(rows, "registration", {"registered": True})
        heartbeat = Heartbeat(config, rows, 7701, HubClient)
        heartbeat.beat()
        heartbeat.last()
        assert notes.noted(rows, "heartbeat")["consecutiveFailures"] == 0
    challenge, registered, *beats = hub.sent
    assert challenge.path.endswith("/challenge")  # which 0.1.0 does not know
    recorded = [register, *RECORDED.to("hub", "heartbeat")]
    for schema, ours, theirs in zip(
        ("Registration", "Heartbeat", "Heartbeat"), (registered, *beats), recorded, strict=True
    ):
        RECORDED.check(schema, json.loads(ours.body))
        assert not lacking(json.loads(theirs.body), json.loads(ours.body))
    assert [json.loads(beat.body)["status"] for beat in beats][-1] == "stopping"


def test_an_agent_links_with_a_hub_of_0_1_0(config: Config) -> None:
    [register] = RECORDED.to("hub", "register")
    calls = RECORDED.to("agent")[:3]  # those of the recorded stream
    received = list[bytes]()

    def api(connection: socket.socket, request: bytes) -> None:
        """This agent's own API, which gets each request as the hub sent it, and answers as recorded."""
        for each in calls:
            while len(request) < len(each.request):
                piece = connection.recv(1 << 16)
                if not piece:
                    return
                request += piece
            received.append(request[: len(each.request)])
            request = request[len(each.request) :]
            connection.sendall(each.reply)

    with old_hub(RECORDED) as hub, served(api) as address:
        known = register.content
        state.save(config.state, state.State(known["token"], known["agentId"], 30, hub.url))
        link = LinkClient((hub.url,), config.state, address, lambda _: None)
        link.start()
        try:
            assert hub.over.wait(60)
        finally:
            link.stop(seconds=60)
    assert received == [each.request for each in calls]
    assert hub.received == b"".join(each.reply for each in calls)
