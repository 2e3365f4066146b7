"""The link between an agent and its hub: real daemons, and the hub's calls over the agent's own connection."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import urllib3
from wsproto.events import BytesMessage

from occ_app.client.agent_client import AgentClient
from occ_app.client.hub_client import HubClient
from occ_app.errors import Unreachable
from occ_app.link.frames import OPEN, SUBPROTOCOL, Frame, decode
from occ_worker.control.link import connect
from tests import fake_link_hub, sentences, wire
from tests.conftest import Occ, control_process, make_zip, occ_in, output, steps, wait_until
from tests.fake_link_hub import LinkHub
from tests.test_tls import make_certificate

# The test's own questions to a hub with TLS; the agent's are what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")

UNREAD_BYTES = 60_000_000 if os.environ.get("TEST_ALL") else 15_000_000  # of an answer; the sockets hold less


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LinkHub]:
    with fake_link_hub.serve(tmp_path) as hub:
        yield hub


def start(occ: Occ, hub: LinkHub, *arguments: str, url: str = "", **environment: str) -> Occ:
    arguments = ("--remote-url", url or hub.url, "--bind-address", "127.0.0.1", *arguments)
    occ.start(*arguments, OCC_API_KEY="made-up", **environment)
    hub.linked()
    return occ


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Occ, LinkHub]]:
    """An agent that is linked with a hub; tests use them one after another by `linked`."""
    with fake_link_hub.serve(tmp_path_factory.mktemp("hub")) as hub, occ_in(tmp_path_factory.mktemp("agent")) as occ:
        yield start(occ, hub), hub


@pytest.fixture
def linked(both: tuple[Occ, LinkHub]) -> tuple[Occ, LinkHub]:
    """An agent with two workers and its hub, which are linked and answer."""
    occ, hub = both
    hub.linked()
    occ.attach()
    client = hub.client()
    wait_until(lambda: succeeds(client), "the agent to answer its hub")
    client.close()
    return occ, hub


def incompressible(size: int) -> io.BytesIO:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        zipped.writestr("large", os.urandom(size))
    archive.seek(0)
    return archive


def test_a_call_of_the_hub_reaches_an_agent_that_listens_on_loopback_alone(linked: tuple[Occ, LinkHub]) -> None:
    _, hub = linked
    client = hub.client()
    assert client.health()["status"] == "healthy"
    client.upload("work", make_zip({"notes.txt": "buy milk\n"}))
    assert output(list(client.execute("work", "hello"))) == "You said: hello"
    back = io.BytesIO()
    client.archive("work", back)
    assert zipfile.ZipFile(back).read("notes.txt") == b"buy milk\n"
    assert stat.S_IMODE((hub.folder / "agent-1").stat().st_mode) == 0o600
    client.close()


def test_an_agent_sees_that_a_hub_offers_links(linked: tuple[Occ, LinkHub]) -> None:
    occ, hub = linked
    known = json.loads((occ.home / "state.json").read_text())
    assert HubClient(hub.url).offers_link(known["agentId"], known["token"]) is True


def test_an_agent_with_tls_is_called_with_tls_and_its_fingerprint(occ: Occ, hub: LinkHub) -> None:
    start(occ, hub, "--tls", "self-signed")
    client = hub.client(pin=occ.pin)
    assert client.health()["status"] == "healthy"
    wrong = hub.client(pin="AB" * 32)
    with pytest.raises(Unreachable, match="another certificate"):
        wrong.health()
    client.close()
    wrong.close()


def test_a_hub_with_tls_is_linked_with_when_its_certificate_is_trusted(occ: Occ, tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path)
    with fake_link_hub.serve(tmp_path, certificate=(chain, key)) as hub:
        start(occ, hub, SSL_CERT_FILE=str(chain))
        client = hub.client()
        assert client.upload("large", incompressible(20_000_000))["bytes"] == 20_000_000
        client.archive("large", back := io.BytesIO())
        assert back.tell() > 20_000_000
        client.close()
        with pytest.raises(Unreachable, match="certificate"):
            connect(hub.url, "agent-1", "token")


def test_streams_and_a_large_upload_go_beside_each_other(linked: tuple[Occ, LinkHub], tmp_path: Path) -> None:
    """A hundred streams of events, an upload of nearly 100 MB, and calls: each comes on while the others do."""
    _, hub = linked
    gate, client = tmp_path / "gate", hub.client()
    client.upload("work", make_zip({"README.md": "hello\n"}))
    spoken = steps({"say": "begun "}, {"wait": str(gate)}, {"say": "word ", "times": 50, "every": 0.01}, {"say": "end"})
    running = client.execute("work", spoken, executionId="long")
    while next(running).name != "output":
        pass
    texts = list[str]()

    def follow() -> None:
        follower = hub.client()
        texts.append(output(list(follower.events("long"))))
        follower.close()

    followers = [threading.Thread(target=follow) for _ in range(100)]
    for follower in followers:
        follower.start()
    uploaded = dict[str, Any]()
    archive = incompressible(99_000_000)
    sender = hub.client()
    upload = threading.Thread(target=lambda: uploaded.update(sender.upload("large", archive)))
    upload.start()
    wait_until(lambda: archive.tell() > 10_000_000, "the upload to be under way")
    calls = 0
    while archive.tell() < 80_000_000:
        assert client.execution("long")["state"] == "running"
        calls += 1
    assert calls >= 3  # answered in the middle of the upload, each
    gate.touch()
    for follower in followers:
        follower.join()
    upload.join()
    assert texts == ["begun " + "word " * 50 + "end"] * 100
    assert uploaded["bytes"] == 99_000_000
    assert output(list(running)) == "word " * 50 + "end"
    sender.close()
    client.close()


def test_a_caller_that_reads_nothing_costs_little_and_stops_nobody(linked: tuple[Occ, LinkHub]) -> None:
    occ, hub = linked
    client = hub.client()
    client.upload("large", incompressible(UNREAD_BYTES))
    before = hub.server.memory_info().rss
    with contextlib.ExitStack() as open_calls:
        for _ in range(5):
            pool = link_pool(hub)
            open_calls.callback(pool.clear)
            headers = {"Authorization": f"Bearer {occ.token}"}
            pool.request("GET", "http://127.0.0.1/workspaces/large/archive", headers=headers, preload_content=False)
        for _ in range(20):
            assert client.health()["workers"]["total"] == 2
        assert hub.server.memory_info().rss < before + 30_000_000  # less than half of those five
    client.close()


def link_pool(hub: LinkHub) -> urllib3.PoolManager:
    from occ_app.client.unix_socket import pools

    return pools(hub.folder / "agent-1", retries=False)


def test_a_link_that_breaks_is_made_again_and_a_stream_goes_on(occ: Occ, hub: LinkHub, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with wire.to(hub.url) as line:
        start(occ, hub, url=line.url)
        client = hub.client()
        client.upload("work", make_zip({"README.md": "hello\n"}))
        running = client.execute("work", steps({"say": "one "}, {"wait": str(gate)}, {"say": "two"}), executionId="x")
        events = [next(running)]
        while events[-1].name != "output":
            events.append(next(running))
        attempts = hub.known()["attempts"]
        line.cut()
        # The agent may have linked again before the test looks.
        lost = lambda: (known := hub.known())["connected"] == [] or known["attempts"] > attempts  # noqa: E731 - short
        wait_until(lost, "the link to be lost")
        gate.touch()
        events += running
        assert output(events) == "one two"
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert client.health()["status"] == "healthy"
        client.close()


def test_a_proxy_that_cuts_what_is_idle_does_not_cut_the_link(occ: Occ, tmp_path: Path) -> None:
    with fake_link_hub.serve(tmp_path, ping_seconds=0.3) as hub, wire.to(hub.url, idle_seconds=4.0) as line:
        start(occ, hub, url=line.url)
        attempts = hub.known()["attempts"]
        # Registrations and beats keep no connection, so whatever is cut for its silence would be the link.
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() > begun + 5, "the proxy to have had time")
        known = hub.known()
        assert (known["connected"], known["attempts"]) == (["agent-1"], attempts)
        client = hub.client()
        assert client.health()["status"] == "healthy"
        client.close()


def test_a_hub_that_restarts_and_knows_nobody_is_registered_with_and_linked_anew(linked: tuple[Occ, LinkHub]) -> None:
    _, hub = linked
    hub.stop()
    assert not (hub.folder / "agent-1").exists()
    hub.start()
    hub.linked()
    client = hub.client()
    assert client.health()["status"] == "healthy"
    client.close()


def test_a_new_token_is_used_at_once(linked: tuple[Occ, LinkHub]) -> None:
    _, hub = linked
    old = hub.known()
    hub.behave(tokens={"agent-1": "another"})
    wait_until(lambda: hub.known()["registrations"] > old["registrations"], "a registration")
    wait_until(lambda: hub.known()["attempts"] > old["attempts"], "a link with the new token")
    client = hub.client()
    wait_until(lambda: succeeds(client), "a call with the new token")
    client.close()


def succeeds(client: AgentClient) -> bool:
    with contextlib.suppress(Unreachable):
        return bool(client.health())
    return False


def test_a_newer_link_takes_the_place_of_the_older(linked: tuple[Occ, LinkHub]) -> None:
    occ, hub = linked
    known = hub.known()
    client = hub.client()
    control = control_process(json.loads((occ.home / "run" / "daemon.json").read_text())["pid"])
    control.suspend()  # it links again a moment after it has heard
    try:
        connection, framing = connect(hub.url, "agent-1", known["tokens"]["agent-1"])
        connection.settimeout(60)
        # Calls come to the newer one, until the agent is back and is the newer one in its turn.
        call = threading.Thread(target=lambda: wait_until(lambda: succeeds(client), "a call to reach the agent"))
        call.start()
        with connection:
            messages = list[bytes]()
            while not messages:
                data = connection.recv(1000)
                assert data, "the newer one has ended"
                framing.receive_data(data)
                messages = [event.data for event in framing.events() if isinstance(event, BytesMessage)]
            assert decode(messages[0]) == Frame(1, OPEN)
            control.resume()
            wait_until(lambda: sentences.A_NEWER_LINK_TOOK_ITS_PLACE in occ.logs(), "the agent to hear of it")
            wait_until(lambda: hub.known()["attempts"] > known["attempts"] + 1, "the agent to link again")
            wait_until(lambda: connection.recv(1000), "our link to end")
    finally:
        control.resume()
    call.join()
    client.close()


@pytest.mark.parametrize(("code", "status"), [("UNAUTHORIZED", 401), ("NOT_FOUND", 404), ("BUSY", 503)])
def test_a_hub_that_refuses_links_disturbs_nothing_and_is_told_of_once(
    occ: Occ, hub: LinkHub, code: str, status: int
) -> None:
    hub.behave(refuse=code)
    occ.start("--remote-url", hub.url, "--bind-address", "127.0.0.1", OCC_API_KEY="made-up")
    wait_until(lambda: f"answers {status}" in occ.logs(), "the refusal to be told of")
    if status == 503:
        wait_until(lambda: hub.known()["attempts"] >= 2, "another attempt")
        hub.behave(refuse=None)
        hub.linked()
    assert occ.client.health()["status"] == "healthy"
    assert occ.logs().count(sentences.DOES_NOT_LINK_THIS_AGENT) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer wrong", "Sec-WebSocket-Protocol": SUBPROTOCOL}, 401),
        ({"Sec-WebSocket-Protocol": "occ-link.2"}, 426),
        ({}, 426),
        ({"Sec-WebSocket-Protocol": SUBPROTOCOL, "Sec-WebSocket-Version": "7"}, 400),
        ({"Sec-WebSocket-Protocol": SUBPROTOCOL, "Upgrade": "h2c"}, 400),
    ],
)
def test_a_refusal_is_json_before_the_upgrade(
    linked: tuple[Occ, LinkHub], headers: dict[str, str], status: int
) -> None:
    _, hub = linked
    hub.behave(tokens=hub.known()["tokens"] | {"agent-2": "right"})
    sent = {
        "Authorization": "Bearer right",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    }
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request("GET", f"{hub.url}/api/agents/agent-2/link", headers=sent | headers, timeout=10)
    assert answer.status == status, answer.data
    assert json.loads(answer.data)["status"] == "error"
    assert hub.known()["connected"] == ["agent-1"]


def test_an_agent_that_is_not_linked_is_unreachable_with_a_reason(tmp_path: Path) -> None:
    client = AgentClient("http://127.0.0.1", "token", through=tmp_path / "agent-9")
    with pytest.raises(Unreachable, match="not linked"):
        client.health()


def test_a_stop_ends_the_link_at_once_and_leaves_nothing(occ: Occ, hub: LinkHub) -> None:
    start(occ, hub)
    server = hub.server
    occ.stop()
    wait_until(lambda: hub.known()["connected"] == [], "the hub to notice")
    wait_until(lambda: list(hub.folder.iterdir()) == [], "its socket to be removed")
    idle = (server.num_fds(), server.num_threads())
    start(occ, hub)
    occ.stop()
    wait_until(lambda: hub.known()["connected"] == [], "the hub to notice")
    wait_until(lambda: (server.num_fds(), server.num_threads()) <= (idle[0], idle[1] + 2), "nothing to be left")


def test_the_last_events_of_a_stop_still_go_over_the_link(occ: Occ, hub: LinkHub) -> None:
    start(occ, hub)
    client = hub.client()
    client.upload("work", make_zip({"README.md": "hello\n"}))
    begun = steps({"stubborn": True}, {"say": "on"}, {"sleep": 60})
    running = client.execute("work", begun, executionId="long")
    while next(running).name != "output":
        pass
    stop = threading.Thread(target=occ.stop)
    stop.start()
    last = list(running)[-1]
    # It came while the agent was stopping: afterwards nobody would have answered.
    assert (last.name, last.data["code"]) == ("error", "DAEMON_STOPPED")
    stop.join()
    client.close()


def test_a_hub_that_hangs_does_not_hold_up_a_stop(occ: Occ, hub: LinkHub) -> None:
    start(occ, hub)
    server: psutil.Process = hub.server
    server.suspend()
    try:
        begun = time.monotonic()
        occ.stop()
        assert time.monotonic() - begun < 30
    finally:
        server.resume()


def test_a_standalone_agent_does_without_the_memory_of_websockets() -> None:
    programs = "occ_worker.agent, occ_worker.control.process, occ_worker.execution.process"
    program = f"import sys, {programs}; sys.exit('wsproto' in sys.modules or 'urllib3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
