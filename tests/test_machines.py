"""Which machine it is: the one that proves it, whatever its key, its name and the address of its hub are."""

from __future__ import annotations

import contextlib
import json
import shutil
import socketserver
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from occ_app.claude.program import Cli
from occ_app.client.hub_client import HubClient
from occ_app.config.config import Config
from occ_app.errors import Refused, StartFailed, Unreachable
from occ_app.home import machine, quarantine, state
from occ_app.hub.agents import boottime
from occ_app.supervisor import registration, startup
from occ_app.supervisor.registration import Registered
from occ_app.system import proofs
from occ_app.system.files import short_path
from tests import sentences
from tests.hub_app import HubApp, hub_app


class InProcess(HubClient):
    """The client of an agent, its calls made to a hub's application in this process."""

    def __init__(self, hub: HubApp, url: str) -> None:
        super().__init__(url)
        self.hub = hub
        self.sent = list[str]()

    def _call(self, method: str, path: str, authorization: str, body: bytes | None = None) -> dict[str, Any]:
        self.sent.append(f"{authorization} {(body or b'').decode()}")
        headers = {"Authorization": authorization, "Content-Type": "application/json"}
        reply = self.hub.app.test_client().open(path, method=method, headers=headers, data=body)
        content: dict[str, Any] = reply.get_json()
        if reply.status_code >= 300:
            raise Refused(content["message"], reply.status_code, content["code"])
        return content


@dataclass
class Box:
    """A home of an agent, which registers as the agent's own code does; `port` is where it listens."""

    home: Path
    key: str
    port: int = 1

    def config(self, name: str = "box", url: str = "http://127.0.0.1:7700") -> Config:
        config = Config(home=self.home, api_key=self.key, remote_url=url, name=name)
        config.make_folders()
        return config

    def start(self, hub: HubApp, name: str = "box", url: str = "http://127.0.0.1:7700") -> Registered:
        """Register as a start of the daemon does."""
        config = self.config(name, url)
        machine.begin_instance(config)
        return registration.register(config, InProcess(hub, url), self.port, Cli(None, None))

    def stop(self, hub: HubApp) -> Box:
        """Send the last heartbeat, as a stop of the daemon does."""
        config = self.config()
        known = state.load(config.state)
        assert known is not None
        beat = {"seqNum": 1, "status": "stopping", "instance": machine.instance(config)}
        reply = hub.call("POST", f"/api/agents/{known.agent_id}/heartbeat", known.token, json=beat)
        assert reply.status_code == 200, reply.text
        return self

    def copy(self, folder: Path) -> Box:
        shutil.copytree(self.home, folder)
        return Box(folder, self.key, self.port)

    @property
    def agent_id(self) -> str:
        known = state.load(self.config().state)
        assert known is not None
        assert known.agent_id is not None
        return known.agent_id


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path) as hub:
        yield hub


@pytest.fixture
def box(hub: HubApp, tmp_path: Path) -> Box:
    box = Box(tmp_path / "box", hub.key("machines", "agent"))
    box.start(hub)
    return box


class _LinkEnd(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None: ...


@contextlib.contextmanager
def linked(hub: HubApp, box: Box, silent: threading.Event | None = None) -> Iterator[None]:
    """Have a machine hold its link: its API answers /proof and /health as its instance, or nothing while `silent`."""
    known, instance = state.load(box.config().state), machine.instance(box.config())
    assert known is not None

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            if silent is not None:
                silent.wait(20)
            nonce = proofs.asked(self.headers["Authorization"], known.token)
            proof = {"proof": proofs.of_agent(known.token, nonce or ""), "instance": instance}
            body = json.dumps(proof if self.path == "/proof" else {"status": "healthy"}).encode()
            self.send_response(200 if nonce or self.path != "/proof" else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with short_path(hub.config.run / "links") as short:
        server = _LinkEnd(f"{short}/{known.agent_id}", Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        (hub.config.run / "links" / str(known.agent_id)).unlink(missing_ok=True)


def ids(hub: HubApp) -> list[str]:
    reply = hub.call("GET", "/agents").json
    assert reply is not None
    return [agent["agentId"] for agent in reply["agents"]]


def problems(hub: HubApp) -> list[str]:
    reply = hub.call("GET", "/health").json
    assert reply is not None
    return list(reply["problems"])


def revoke(hub: HubApp, name: str) -> None:
    assert hub.call("POST", f"/keys/{name}/revoke").status_code == 200


def age(hub: HubApp) -> None:
    """Make all registrations older than the time in which a link is waited for."""
    with hub.database.write() as connection:
        connection.execute("UPDATE agents SET registered_at = '2026-01-01T00:00:00.000Z'")
    hub.app.extensions["occ_hub"].calls._began -= 600


def test_the_secret_is_private_and_is_never_sent(hub: HubApp, box: Box) -> None:
    config = box.config()
    assert stat.S_IMODE(config.machine.stat().st_mode) == 0o600
    client = InProcess(hub, "http://127.0.0.1:7700")
    registration.register(config, client, 1, Cli(None, None))
    known = machine.load(config.machine)
    assert known is not None
    assert known.secret not in "".join(client.sent)
    assert '"verifier": null' in client.sent[-1]  # the hub has it
    assert box.key not in client.sent[0]


def test_a_machine_stays_itself_under_another_key_name_or_address(hub: HubApp, box: Box) -> None:
    before = box.agent_id
    box.key = hub.call("POST", "/keys/machines/rotate", json={}).get_json()["key"]
    assert box.stop(hub).start(hub).state.agent_id == before
    box.key = hub.key("others", "agent")
    assert box.stop(hub).start(hub, name="renamed").state.agent_id == before
    revoke(hub, "machines")
    box.stop(hub)
    assert box.start(hub, url="https://hub.example").state.agent_id == before
    assert ids(hub) == [before]


def test_a_machine_that_was_with_another_hub_is_itself_again(hub: HubApp, box: Box, tmp_path: Path) -> None:
    before = box.stop(hub).agent_id
    with hub_app(tmp_path / "other") as other:
        moved = Box(box.home, other.key("machines", "agent"))
        assert moved.start(other, url="http://127.0.0.1:7701").state.agent_id != before
    assert box.start(hub).state.agent_id == before
    assert not problems(hub)


def test_a_hub_restored_from_a_copy_knows_the_machine(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        box = Box(tmp_path / "box", hub.key("machines", "agent"))
        before = box.start(hub).state.agent_id
        box.stop(hub)
    shutil.copytree(tmp_path / "hub", tmp_path / "copy", ignore=shutil.ignore_patterns("run"))
    with hub_app(tmp_path) as hub:
        box.start(hub)
        box.stop(hub)
    shutil.rmtree(tmp_path / "hub")
    shutil.copytree(tmp_path / "copy", tmp_path / "hub")
    with hub_app(tmp_path) as hub:
        assert box.start(hub).state.agent_id == before
        assert ids(hub) == [before]


def test_a_hub_that_lost_a_machine_enrols_it_again(hub: HubApp, box: Box) -> None:
    before = box.agent_id
    hub.call("DELETE", f"/agents/{before}")
    again = box.start(hub).state.agent_id
    assert again != before
    assert box.stop(hub).start(hub).state.agent_id == again
    assert ids(hub) == [again]


def test_a_name_a_key_or_an_id_alone_identify_nobody(hub: HubApp, box: Box, tmp_path: Path) -> None:
    stranger = Box(tmp_path / "stranger", box.key)
    (tmp_path / "stranger").mkdir()
    state.save(tmp_path / "stranger" / "state.json", state.State("guessed", box.agent_id, 30, "http://127.0.0.1:7700"))
    assert stranger.start(hub).state.agent_id != box.agent_id
    unproven = hub.register(box.key, "box", box.agent_id).get_json()
    assert unproven["agentId"] not in (box.agent_id, stranger.agent_id)


def test_a_proof_is_good_for_its_nonce_and_machine_alone(hub: HubApp, box: Box) -> None:
    client = InProcess(hub, "http://127.0.0.1:7700")
    registration.register(box.config(), client, 1, Cli(None, None))
    sent = json.loads(client.sent[-1].partition("{")[2].join(("{", "")))
    replayed = hub.call("POST", "/api/agents/register", box.key, json=sent)
    assert (replayed.status_code, replayed.get_json()["code"]) == (409, "NONCE_EXPIRED")
    sent["machine"]["nonce"] = client.challenge(box.key).nonce
    forged = hub.call("POST", "/api/agents/register", box.key, json=sent)
    assert (forged.status_code, forged.get_json()["code"]) == (403, "FORBIDDEN")


def test_a_challenge_is_for_those_who_hold_a_key_and_proves_the_hub(hub: HubApp, box: Box) -> None:
    for stranger in ("occ_agent_guessed", hub.key("me", "client")):
        with pytest.raises(Refused, match=sentences.NOT_FROM_A_VALID_AGENT_KEY):
            InProcess(hub, "http://127.0.0.1:7700").challenge(stranger)

    class Impostor(InProcess):
        def _call(self, method: str, path: str, authorization: str, body: bytes | None = None) -> dict[str, Any]:
            self.sent.append(f"{authorization} {(body or b'').decode()}")
            return {"hubId": f"hub-{'0' * 32}", "nonce": "0" * 32, "proof": "f" * 64}

    impostor = Impostor(hub, "http://hub.example")
    with pytest.raises(Unreachable, match=sentences.DOES_NOT_PROVE):
        registration.register(box.config(url="http://hub.example"), impostor, 1, Cli(None, None))
    assert len(impostor.sent) == 1
    assert box.key not in impostor.sent[0]


def test_nothing_is_sent_where_a_proven_hub_was_and_none_is_now(hub: HubApp, tmp_path: Path) -> None:
    url = "http://hub.example"
    box = Box(tmp_path / "box", hub.key("machines", "agent"))
    box.start(hub, url=url)

    class Older(InProcess):
        def _call(self, method: str, path: str, authorization: str, body: bytes | None = None) -> dict[str, Any]:
            self.sent.append(authorization)
            raise Refused("There is nothing here.", 404, "NOT_FOUND")

    older = Older(hub, url)
    with pytest.raises(Unreachable, match=sentences.DOES_NOT_PROVE):
        registration.register(box.config(url=url), older, 1, Cli(None, None))
    assert len(older.sent) == 1


def test_a_copy_of_a_machine_that_runs_becomes_another_machine(hub: HubApp, box: Box, tmp_path: Path) -> None:
    before = box.agent_id
    twin = box.copy(tmp_path / "twin")
    with linked(hub, box):
        registered = twin.start(hub)
        assert registered.copy_of == before
        assert registered.state.agent_id != before
        [named] = [problem for problem in problems(hub) if "copy" in problem]
        assert before in named
        config = box.config()  # neither takes the id of the other from now on
        assert (
            registration.register(config, InProcess(hub, config.remote_url or ""), 1, Cli(None, None)).copy_of is None
        )
        assert twin.stop(hub).start(hub).copy_of is None
    assert box.stop(hub).start(hub).state.agent_id == before
    assert sorted(ids(hub)) == sorted([before, twin.agent_id])


def test_a_machine_whose_former_instance_is_gone_takes_its_place_quietly(hub: HubApp, box: Box, tmp_path: Path) -> None:
    before = box.agent_id
    moved = box.copy(tmp_path / "moved")
    age(hub)
    registered = moved.start(hub)
    assert (registered.state.agent_id, registered.copy_of) == (before, None)
    assert not [problem for problem in problems(hub) if "copy" in problem]


def test_a_copy_neither_beats_nor_links_with_the_token_of_its_original(hub: HubApp, box: Box, tmp_path: Path) -> None:
    """A copy that starts while its hub is away has the token before it has registered."""
    config = box.copy(tmp_path / "twin").config()
    instance = machine.begin_instance(config)
    known = state.load(config.state)
    assert known is not None
    beat = {"seqNum": 1, "status": "healthy", "instance": instance}
    path = f"/api/agents/{known.agent_id}"
    assert hub.call("POST", f"{path}/heartbeat", known.token, json=beat).status_code == 401
    beat["instance"] = machine.instance(box.config())
    assert hub.call("POST", f"{path}/heartbeat", known.token, json=beat).status_code == 200
    upgrade = {
        **{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    for name, status in ((instance, 401), (machine.instance(box.config()), 426)):
        headers = upgrade | {"OCC-Instance": name}
        assert hub.call("GET", f"{path}/link", known.token, headers=headers).status_code == status


def test_a_copy_waits_while_its_original_may_come_back_to_a_hub_that_started(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        box = Box(tmp_path / "box", hub.key("machines", "agent"))
        before = box.start(hub).state.agent_id
    with hub_app(tmp_path) as hub:
        twin = box.copy(tmp_path / "twin")
        with pytest.raises(Refused) as refused:
            twin.start(hub)
        assert (refused.value.status, refused.value.code) == (503, "BUSY")
        with linked(hub, box):
            assert twin.start(hub).copy_of == before
        assert sorted(ids(hub)) == sorted([before, twin.agent_id])


def test_a_holder_that_does_not_answer_in_time_is_gone(hub: HubApp, box: Box, tmp_path: Path) -> None:
    silent = threading.Event()
    with linked(hub, box, silent):
        assert box.copy(tmp_path / "moved").start(hub).copy_of is None
        silent.set()


def test_an_agent_without_proofs_keeps_its_id_by_its_key_while_nobody_else_has_it(hub: HubApp) -> None:
    key, other = hub.key("machines", "agent"), hub.key("others", "agent")
    first = hub.register(key, "old").get_json()
    again = hub.register(key, "old", first["agentId"]).get_json()
    assert again["agentId"] == first["agentId"]
    assert hub.register(other, "old", first["agentId"]).get_json()["agentId"] != first["agentId"]
    revoke(hub, "machines")
    assert hub.register(other, "old", first["agentId"]).get_json()["agentId"] != first["agentId"]


def test_an_agent_without_proofs_takes_no_id_of_a_live_one(hub: HubApp, tmp_path: Path) -> None:
    key = hub.key("machines", "agent")
    first = hub.register(key, "old").get_json()
    home = tmp_path / "old"
    home.mkdir()
    state.save(home / "state.json", state.State(first["token"], first["agentId"], 30, "http://127.0.0.1:7700"))
    with linked(hub, Box(home, key)):
        body = {"protocol": 1, "agentId": first["agentId"], "name": "old", "version": "0.1.0", "workers": 1}
        another = hub.call("POST", "/api/agents/register", key, json={**body, "port": 2}).get_json()
        assert another["agentId"] != first["agentId"]
        assert first["agentId"] in str(problems(hub))
        same = hub.call("POST", "/api/agents/register", key, json={**body, "port": 1}).get_json()
        assert same["agentId"] == first["agentId"]  # its daemon, whose token was refused


@pytest.mark.parametrize("proof", ["key", "token"])
def test_an_upgraded_agent_keeps_the_id_that_it_had(hub: HubApp, tmp_path: Path, proof: str) -> None:
    key = hub.key("machines", "agent")
    first = hub.register(key, "old").get_json()
    home = tmp_path / "old"
    home.mkdir()
    token = first["token"] if proof == "token" else "another"
    state.save(home / "state.json", state.State(token, first["agentId"], 30, "http://127.0.0.1:7700"))
    box = Box(home, hub.key("others", "agent") if proof == "token" else key)
    url = "http://localhost:7700"  # not as it was written before
    assert box.start(hub, url=url).state.agent_id == first["agentId"]
    assert hub.register(key, "old", first["agentId"]).get_json()["agentId"] != first["agentId"]


def test_a_key_s_limit_holds_for_a_machine_that_comes_with_another_key(hub: HubApp, box: Box, tmp_path: Path) -> None:
    few = hub.key("few", "agent", most=1)
    Box(tmp_path / "only", few).start(hub, "only")
    box.key = few
    with pytest.raises(Refused, match="is for 1 machines"):
        box.start(hub)


def test_an_agent_key_is_for_so_many_machines(hub: HubApp, tmp_path: Path) -> None:
    few = hub.key("few", "agent", most=1)
    box = Box(tmp_path / "only", few)
    first = box.start(hub).state.agent_id
    box.stop(hub)
    assert box.start(hub).state.agent_id == first  # the same machine counts once
    with pytest.raises(Refused, match="is for 1 machines") as refused:
        Box(tmp_path / "second", few).start(hub, "second")
    assert refused.value.status == 403  # with which a start ends, exit code 4


def test_the_last_beat_of_a_machine_makes_it_offline_at_once(hub: HubApp, box: Box) -> None:
    beat = {"seqNum": 1, "status": "healthy", "instance": machine.instance(box.config())}
    known = state.load(box.config().state)
    assert known is not None
    assert hub.call("POST", f"/api/agents/{box.agent_id}/heartbeat", known.token, json=beat).status_code == 200
    assert hub.call("GET", "/agents/box").json["state"] == "online"  # type: ignore[index]
    stopping = beat | {"seqNum": 2, "status": "stopping"}
    assert hub.call("POST", f"/api/agents/{box.agent_id}/heartbeat", known.token, json=stopping).status_code == 200
    assert hub.call("GET", "/agents/box").json["state"] == "offline"  # type: ignore[index]


def test_a_machine_is_offline_once_two_beats_were_missed(hub: HubApp, box: Box) -> None:
    beat = {"seqNum": 1, "status": "healthy", "instance": machine.instance(box.config())}
    known = state.load(box.config().state)
    assert known is not None
    assert hub.call("POST", f"/api/agents/{box.agent_id}/heartbeat", known.token, json=beat).status_code == 200
    for beats, shown in ((1.5, "online"), (2.5, "offline")):
        with hub.database.write() as connection:
            connection.execute(
                "UPDATE agents SET heard = :heard", {"heard": boottime() - beats * hub.config.heartbeat_seconds}
            )
        assert hub.call("GET", "/agents/box").json["state"] == shown  # type: ignore[index]


def test_a_damaged_secret_is_put_aside_and_one_that_others_can_read_stops_a_start(tmp_path: Path) -> None:
    config = Box(tmp_path, "key").config()
    machine.ensure(config.machine)
    config.machine.chmod(0o640)
    with pytest.raises(StartFailed, match=sentences.CAN_BE_READ_BY_OTHERS):
        startup.clean(config, 0)
    config.machine.write_text('{"secret": "short"')
    [told] = quarantine.put_unreadable_aside(config)
    assert sentences.REGISTER_THIS_MACHINE_AS_A_NEW in told
    assert not config.machine.exists()
    assert list(tmp_path.glob("machine.json.unreadable-*"))
