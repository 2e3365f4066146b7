"""Where a hub calls its machines: never on its own machine or where clouds keep secrets, checked at the connect."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from occ_app.client.agent_client import AgentClient
from occ_app.database.database import Database
from occ_app.errors import Unreachable
from occ_app.hub import agent_schemas, keys, registrations
from occ_app.hub import forbidden_addresses as addresses
from occ_app.hub.agent_clients import Calls, check_address
from occ_app.hub.agents import Agent, Agents
from occ_app.web import requests as web
from tests.databases import make_database


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254:80",
        "http://[fe80::1]:80",
        "http://127.0.0.1:7700",
        "http://127.9.9.9:7700",
        "http://localhost:7700",
        "http://[::1]:7700",
        "http://[::ffff:127.0.0.1]:80",
        "http://[::ffff:169.254.169.254]:80",
        "http://[64:ff9b::7f00:1]:80",
        "http://100.100.100.200:80",
        "http://0.0.0.0:80",
        "http://224.0.0.1:80",
        "http://no-such-host.invalid:80",
    ],
)
def test_addresses_that_are_never_called(url: str) -> None:
    with pytest.raises(Unreachable):
        check_address(url)


def test_addresses_that_may_be_called() -> None:
    check_address("http://192.0.2.5:1")
    check_address("https://192.0.2.6")


def test_every_address_of_this_machine_is_its_own() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = str(probe.getsockname()[0])
    with pytest.raises(Unreachable):
        check_address(f"http://{own}:80")
    with pytest.raises(Unreachable):
        addresses.check_peer(own)


@pytest.fixture
def service() -> Iterator[tuple[int, list[bytes]]]:
    """A service on loopback: its port, and what it was sent."""
    seen = list[bytes]()
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                seen.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1], seen
    server.close()


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    path = tmp_path / "occ.db"
    make_database(path)
    return Agents(Database(path), 30)


def registered(agents: Agents, rows: Any, peer: str, port: int, url: str | None = None) -> Agent:
    key, _ = keys.create(rows, "machines", "agent")
    said = {"protocol": 1, "name": "evil", "version": "1", "port": port, "workers": 1, "url": url}
    return registrations.register(agents, key, peer, web.loaded(agent_schemas.Registration, said))


@pytest.mark.parametrize("where", ["its name", "its peer"])
def test_a_name_that_moves_to_the_hub_s_machine_after_the_probe_is_sent_nothing(
    agents: Agents,
    tmp_path: Path,
    service: tuple[int, list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """As a machine does that answers at its name while it is probed, then has the name lead to loopback."""
    port, seen = service
    url = f"http://localhost:{port}" if where == "its name" else None
    agent = registered(agents, Database(tmp_path / "occ.db"), "127.0.0.1", port, url)
    calls = Calls(agents, tmp_path / "links")
    assert not calls.probe(agent)
    # Stands for a name server that gives another address to the second who asks.
    monkeypatch.setattr(addresses, "resolved", lambda url: [])
    assert not calls.probe(agent)
    agents.set_reachable(agent, "direct")
    found = agents.find(agent.agent_id)
    assert found is not None
    client = calls.client(found)
    for call in (
        client.health,
        lambda: client.archive("w", io.BytesIO()),
        lambda: list(client.batches("e", 0, {"executionId": "e"})),
        lambda: client.cancel("e"),
        lambda: client.call("DELETE", "/workspaces/w"),
    ):
        with pytest.raises(Unreachable):
            call()
    assert b"".join(seen) == b""


def test_a_client_of_a_person_may_call_loopback(service: tuple[int, list[bytes]]) -> None:
    port, seen = service
    AgentClient(f"http://127.0.0.1:{port}", "token").call("GET", "/x")
    assert len(seen) == 1


def test_a_machine_behind_a_proxy_on_the_hub_s_machine_is_not_taken_for_the_proxy(
    agents: Agents, tmp_path: Path, service: tuple[int, list[bytes]]
) -> None:
    """Every such machine seems to register from the hub's own address; none may have the hub call itself."""
    port, seen = service
    agent = registered(agents, Database(tmp_path / "occ.db"), "127.0.0.1", 9, f"http://127.0.0.1:{port}")
    assert not Calls(agents, tmp_path / "links").probe(agent)
    assert b"".join(seen) == b""
