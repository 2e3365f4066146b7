"""Registering with a hub and staying in touch with it, against a small real server."""

from __future__ import annotations

import contextlib
import json
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from occ_app.client.hub_client import HubClient
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.home import notes
from occ_app.home.state import State
from occ_app.supervisor.preparation import prepare_agent
from occ_app.supervisor.registration import without_a_way
from tests import fake_hub, sentences
from tests.conftest import Occ, occ_in, steps, wait_until
from tests.databases import make_database
from tests.fake_hub import Hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with fake_hub.serve() as server:
        yield server


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Occ, Hub]]:
    """An agent that beats at a server; tests use them one after another by `beating`."""
    with fake_hub.serve() as server, occ_in(tmp_path_factory.mktemp("registered")) as occ:
        yield start(occ, server), server


@pytest.fixture
def beating(registered: tuple[Occ, Hub]) -> tuple[Occ, Hub]:
    """A healthy agent with two workers, and its server, which keeps its registrations and has one new beat."""
    occ, hub = registered
    hub.beat_with = hub.register_with = None
    hub.released.set()
    hub.released = threading.Event()
    occ.attach()
    wait_until(lambda: occ.client.health()["heartbeat"]["consecutiveFailures"] == 0, "a beat that is taken")
    hub.beats.clear()
    wait_until(lambda: hub.beats, "a beat")
    wait_until(lambda: occ.client.health()["status"] == "healthy", "the agent to be healthy")
    return occ, hub


def start(occ: Occ, hub: Hub, *arguments: str) -> Occ:
    return occ.start("--remote-url", hub.url, "--bind-address", "127.0.0.1", *arguments, OCC_API_KEY=fake_hub.API_KEY)


def state(occ: Occ) -> dict[str, Any]:
    return dict(json.loads((occ.home / "state.json").read_text()))


def test_an_agent_registers_with_what_the_hub_needs_to_know(occ: Occ, hub: Hub) -> None:
    start(occ, hub, "--name", "box", "--label", "gpu", "--label", "eu", "--public-url", "https://box.example:8443")
    (body,) = hub.registrations
    assert body["protocol"] == 1
    assert body["agentId"] is None
    assert (body["name"], body["labels"], body["workers"]) == ("box", ["gpu", "eu"], 2)
    assert body["url"] == "https://box.example:8443"
    assert body["port"] == int(occ.url.rpartition(":")[2])
    assert body["claudeVersion"] == "9.9.9"
    assert {"version", "platform", "tlsFingerprint"} <= set(body)
    assert body["direct"] is True


@pytest.mark.parametrize("chosen", [{}, {"bind_address": "0.0.0.0"}, {"public_url": "https://box.example"}])
def test_a_start_says_when_the_server_has_no_way_to_the_agent(tmp_path: Path, hub: Hub, chosen: dict[str, str]) -> None:
    # The answer of a server without links is real; only its address is written as one elsewhere.
    elsewhere = HubClient(hub.url)
    assert elsewhere.offers_link("agent-1", "token") is False
    elsewhere.url = "http://hub.example"
    elsewhere.offers_link = lambda *_: False  # type: ignore[method-assign]
    told = without_a_way(Config(home=tmp_path, **chosen), elsewhere, State("token", "agent-1"))
    assert bool(told) is not bool(chosen)
    if told:
        assert "--bind-address" in told[0]
        assert "--public-url" in told[0]


def test_the_hub_s_token_opens_the_agent_s_api(beating: tuple[Occ, Hub]) -> None:
    occ, hub = beating
    assert occ.token == hub.tokens["agent-1"]
    assert occ.client.health()["status"] == "healthy"
    assert stat.S_IMODE((occ.home / "state.json").stat().st_mode) == 0o600


def test_id_and_token_survive_a_restart(occ: Occ, hub: Hub) -> None:
    start(occ, hub)
    occ.stop()
    start(occ, hub)
    assert [body["agentId"] for body in hub.registrations] == [None, "agent-1"]
    assert state(occ)["agentId"] == "agent-1"


def test_an_agent_that_is_started_without_its_hub_says_so(occ: Occ, hub: Hub) -> None:
    start(occ, hub)
    occ.stop()
    del occ.environment["OCC_API_KEY"]
    assert f"{sentences.WAS_REGISTERED_WITH} {hub.url} {sentences.AND_IS_STANDALONE_NOW}" in occ.command("start").stderr


def test_it_beats_each_interval_with_rising_numbers(beating: tuple[Occ, Hub]) -> None:
    occ, hub = beating
    wait_until(lambda: len(hub.beats) >= 4, "four beats")
    first = hub.beats[0].body["seqNum"]
    assert [beat.body["seqNum"] for beat in hub.beats[:4]] == [first, first + 1, first + 2, first + 3]
    # Never early in the mean: one that came late is followed soon. The wait above proves that they come.
    assert hub.beats[3].at - hub.beats[0].at > 0.9
    beat = hub.beats[0]
    assert (beat.agent_id, beat.token) == ("agent-1", occ.token)
    assert beat.body["workers"] == {"total": 2, "busy": 0}
    assert {"timestamp", "status", "version", "uptime", "queue", "executions", "problems"} <= set(beat.body)


def test_it_keeps_its_beat_while_every_worker_is_busy(beating: tuple[Occ, Hub], tmp_path: Path) -> None:
    occ, hub = beating
    gate = tmp_path / "gate"
    for name in ("one", "two"):
        occ.workspace(name)
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(occ.run, steps({"wait": str(gate)}), name, executionId=f"busy-{name}")
            for name in ("one", "two")
        ]
        busy = wait_until(lambda: next((b for b in hub.beats if b.body["workers"]["busy"] == 2), None), "a busy beat")
        assert sorted(busy.body["executions"]) == ["busy-one", "busy-two"]
        before = len(hub.beats)
        wait_until(lambda: len(hub.beats) >= before + 3, "three more beats")
        gate.touch()
        for run in runs:
            run.result()


def test_health_tells_of_a_hub_that_fails_and_recovers(beating: tuple[Occ, Hub]) -> None:
    occ, hub = beating
    before = len(hub.registrations)
    assert occ.client.health()["heartbeat"]["lastSuccessfulAt"]
    hub.beat_with = 500
    failing = wait_until(
        lambda: (h := occ.client.health())["heartbeat"]["consecutiveFailures"] >= 2 and h, "two failures"
    )
    assert failing["status"] == "degraded"
    assert "heartbeats" in failing["problems"][0]
    assert len(hub.registrations) == before
    hub.beat_with = None
    wait_until(lambda: occ.client.health()["heartbeat"]["consecutiveFailures"] == 0, "a beat that is taken")
    wait_until(lambda: occ.client.health()["status"] == "healthy", "the agent to be healthy")


def test_health_names_that_the_hub_cannot_call_the_agent(beating: tuple[Occ, Hub]) -> None:
    occ, hub = beating
    for reply, problems in (({"via": None}, 1), ({"via": "link"}, 0), ({"via": None}, 1), ({}, 0)):
        hub.beat_with = lambda handler, reply=reply: handler.answer(200, reply)
        wait_until(
            lambda problems=problems: sum("cannot call" in p for p in occ.client.health()["problems"]) == problems,
            f"{reply} means {problems} problems",
        )


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_token_is_replaced_by_one_registration(beating: tuple[Occ, Hub], status: int) -> None:
    occ, hub = beating
    old, before = occ.token, len(hub.registrations)
    new = f"token-{before + 1}"
    hub.tokens = {}
    hub.beat_with = status

    def register_again(handler: Any) -> None:
        hub.beat_with = hub.register_with = None
        handler.register(hub.registrations[-1], fake_hub.API_KEY)

    hub.register_with = register_again
    wait_until(lambda: len(hub.registrations) == before + 1, "another registration")
    wait_until(lambda: hub.beats[-1].token == new, "a beat with the new token")
    assert hub.registrations[-1]["agentId"] == "agent-1"
    assert state(occ)["token"] == new
    assert occ.request("GET", "/health", Authorization=f"Bearer {old}").status == 401
    assert occ.request("GET", "/health", Authorization=f"Bearer {new}").status == 200
    assert len(hub.registrations) == before + 1


def test_a_beat_is_never_repeated(beating: tuple[Occ, Hub]) -> None:
    _, hub = beating
    hub.beat_with = 500
    before = len(hub.beats)
    wait_until(lambda: len(hub.beats) >= before + 4, "four beats")
    numbers = [beat.body["seqNum"] for beat in hub.beats]
    assert numbers == sorted(set(numbers))


def test_retry_after_skips_beats(beating: tuple[Occ, Hub]) -> None:
    _, hub = beating
    refused = list[float]()

    def refuse(handler: Any) -> None:
        refused.append(time.monotonic())
        handler.answer(503, {}, Retry_After="4")

    hub.beat_with = refuse
    wait_until(lambda: len(refused) >= 2, "a second beat")
    assert refused[1] - refused[0] > 3


def test_the_last_beat_says_that_it_stops(occ: Occ, hub: Hub) -> None:
    start(occ, hub)
    wait_until(lambda: hub.beats, "a first beat")
    occ.stop()
    assert [beat.body["seqNum"] for beat in hub.beats] == list(range(1, len(hub.beats) + 1))
    assert hub.beats[-1].body["status"] == "stopping"


def test_a_hanging_hub_does_not_hold_up_a_stop(occ: Occ, hub: Hub) -> None:
    start(occ, hub)
    wait_until(lambda: hub.beats, "a first beat")
    hub.beat_with = lambda handler: handler.hang()
    before = len(hub.beats)
    wait_until(lambda: len(hub.beats) > before, "a beat that hangs")
    assert "has stopped" in occ.command("stop").stdout


def test_without_a_reachable_hub_it_serves_and_registers_later(occ: Occ, hub: Hub) -> None:
    hub.register_with = 500
    started = occ.command("start", "--remote-url", hub.url, "--bind-address", "127.0.0.1", OCC_API_KEY=fake_hub.API_KEY)
    assert "warning" in started.stderr
    assert "background" in started.stderr
    occ.attach()
    health = occ.client.health()
    assert (health["status"], bool(health["problems"])) == ("degraded", True)
    hub.register_with = None
    wait_until(lambda: hub.beats, "a beat")
    wait_until(lambda: state(occ)["agentId"] == "agent-1", "the hub's id")
    assert occ.request("GET", "/health", Authorization="Bearer " + state(occ)["token"]).status == 200


def test_nobody_listening_at_the_hub_s_address_is_a_warning(occ: Occ) -> None:
    started = occ.command(
        "start", "--remote-url", "http://127.0.0.1:9", "--bind-address", "127.0.0.1", OCC_API_KEY="made-up"
    )
    assert sentences.DOES_NOT_ANSWER in started.stderr


@pytest.mark.parametrize("key", ["wrong-key"])
def test_a_refused_key_is_exit_code_4_and_leaves_nothing(occ: Occ, hub: Hub, key: str) -> None:
    refused = occ.command("start", "--remote-url", hub.url, "--bind-address", "127.0.0.1", check=False, OCC_API_KEY=key)
    assert refused.returncode == 4
    assert "This key is not known" in refused.stderr
    assert not (occ.home / "state.json").exists()
    assert not occ.processes()
    assert occ.command("status", check=False).returncode == 3


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: handler.answer(200, b"<html>welcome</html>"),
        lambda handler: handler.answer(302, {}, Location="http://127.0.0.1:9/"),
        lambda handler: handler.answer(201, {"agentId": 5}),
        lambda handler: handler.answer(201, b"[" * 2_000_000),
    ],
)
def test_an_answer_that_is_no_hub_s_is_a_warning(tmp_path: Path, hub: Hub, fake_claude: Path, answer: Any) -> None:
    hub.register_with = answer
    config = Config(home=tmp_path / "home", remote_url=hub.url, api_key=fake_hub.API_KEY, claude_bin=str(fake_claude))
    config.make_folders()
    make_database(config.database)
    [warning] = prepare_agent(config, 1)
    assert "background" in warning
    assert len(hub.registrations) == 1
    registration = notes.noted(Database(config.database), "registration")
    assert (registration["registered"], bool(registration["problem"])) == (False, True)


def test_the_api_key_is_in_no_process_but_the_one_that_registers(beating: tuple[Occ, Hub]) -> None:
    occ, _ = beating
    holders = set()
    for pid, command in occ.commands().items():
        assert fake_hub.API_KEY not in command
        with contextlib.suppress(OSError):  # it has just ended
            if fake_hub.API_KEY in Path(f"/proc/{pid}/environ").read_text():
                holders.add(command.split(" -m ")[1])
    assert {holder for holder in holders if "supervisor" not in holder} == {"occ_worker.agent control"}
    assert fake_hub.API_KEY not in occ.logs()


def _reset(handler: Any) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def _drip(handler: Any) -> None:
    """One byte now and then, for longer than an agent may wait."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while not handler.hub.released.wait(0.5):
        handler.wfile.write(b" ")


@pytest.mark.parametrize(
    "fault",
    [
        500,
        lambda handler: handler.answer(503, {}, Retry_After="1"),
        lambda handler: handler.answer(200, b"<html>welcome</html>"),
        lambda handler: handler.answer(302, {}, Location="http://127.0.0.1:9/"),
        lambda handler: handler.answer(200, b" " * 80_000_000),
        _reset,
        _drip,
        lambda handler: handler.hang(),
    ],
    ids=["500", "503", "html", "redirect", "huge", "reset", "drip", "hang"],
)
def test_a_hub_that_misbehaves_disturbs_no_work_and_is_counted(beating: tuple[Occ, Hub], fault: Any) -> None:
    occ, hub = beating
    occ.workspace()
    before = len(hub.registrations)
    memory = _beating(occ).memory_info().rss
    hub.beat_with = fault
    assert occ.run("hello")[-1].name == "complete"
    wait_until(lambda: occ.client.health()["heartbeat"]["consecutiveFailures"] >= 1, "a failure to be counted")
    assert occ.run("hello")[-1].name == "complete"
    assert len(hub.registrations) == before
    assert _beating(occ).memory_info().rss < memory + 30_000_000
    hub.beat_with = None
    hub.released.set()
    wait_until(lambda: occ.client.health()["heartbeat"]["consecutiveFailures"] == 0, "a beat that is taken")


def _beating(occ: Occ) -> psutil.Process:
    """The process that sends the heartbeats."""

    def alone() -> list[int]:
        found = [pid for pid, command in occ.commands().items() if "occ_worker.agent control" in command]
        return found if len(found) == 1 else []  # another one is just becoming a program that it starts

    return psutil.Process(wait_until(alone, "the control process")[0])
