"""A backup of a hub, its restore on another machine, and agents that follow it to another address."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from occ_app.claude.program import Cli
from occ_app.cli.commands import occ as occ_command
from occ_app.config.config import Config, load
from occ_app.errors import ConfigError, NotWritten, Refused, Unreachable
from occ_app.home import backup, machine, state
from occ_app.supervisor import registration
from tests.conftest import wait_until
from tests.hub_app import HubApp, hub_app
from tests.real_hub import Hub, hub_in
from tests.test_machines import Box, InProcess

OLD, NEW = "http://127.0.0.1:7700", "http://127.0.0.1:7701"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path / "old") as hub:
        yield hub


@pytest.fixture
def box(hub: HubApp, tmp_path: Path) -> Box:
    return Box(tmp_path / "box", hub.key("machines", "agent"))


@contextlib.contextmanager
def restored(hub: HubApp, folder: Path) -> Iterator[HubApp]:
    """The hub of a backup that was made now, in another home."""
    backup.write(hub.config, folder / "hub.tar.gz")
    backup.restore(replace(hub.config, home=folder / "new" / "hub"), folder / "hub.tar.gz")
    with hub_app(folder / "new") as copy:
        yield copy


def test_a_restored_hub_has_the_keys_zips_and_certificate(hub: HubApp, tmp_path: Path) -> None:
    key = hub.key("phone", "client")
    (hub.config.zips / "abc.zip").write_bytes(b"zip")
    (hub.config.home / "tls.pem").write_text("certificate")
    (hub.config.home / "config.toml").write_text("relays = 3\n")
    with restored(hub, tmp_path) as copy:
        assert copy.call("GET", "/workspaces", key).status_code == 200
        for name in ("zips/abc.zip", "tls.pem", "config.toml", "state.json"):
            assert (copy.config.home / name).read_bytes() == (hub.config.home / name).read_bytes()
        assert (copy.config.home / "state.json").stat().st_mode & 0o077 == 0


def test_a_machine_keeps_its_id_on_a_restored_hub(hub: HubApp, box: Box, tmp_path: Path) -> None:
    before = box.start(hub).state.agent_id
    box.stop(hub)
    with restored(hub, tmp_path) as copy:
        assert box.start(copy, url=NEW).state.agent_id == before


def test_a_backup_replaces_no_hub_and_other_files_are_none(hub: HubApp, tmp_path: Path) -> None:
    backup.write(hub.config, tmp_path / "hub.tar.gz")
    with pytest.raises(NotWritten, match="already"):
        backup.restore(hub.config, tmp_path / "hub.tar.gz")
    empty = replace(hub.config, home=tmp_path / "empty")
    for content in (b"no archive", archive({"occ.db": b""}), archive({"../out": b"x", "occ.db": b"", "zips/a": b""})):
        (tmp_path / "other.tar.gz").write_bytes(content)
        with pytest.raises(NotWritten):
            backup.restore(empty, tmp_path / "other.tar.gz")
    assert not (tmp_path / "out").exists()
    assert not (empty.home / "occ.db").exists()
    assert not list(tmp_path.glob(".restoring-*"))


def archive(files: dict[str, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz") as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return output.getvalue()


class Away(InProcess):
    """The client of an address where nothing answers."""

    def _call(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.sent.append("")
        raise Unreachable(f"{self.url} does not answer.")


class Elsewhere(InProcess):
    """The client of an address where a server answers that is no hub."""

    def _call(self, method: str, path: str, authorization: str, body: bytes | None = None) -> dict[str, Any]:
        self.sent.append(f"{authorization} {(body or b'').decode()}")
        raise Refused("Not found", 404, "NOT_FOUND")


def register(config: Config, **clients: InProcess) -> registration.Registered:
    machine.begin_instance(config)
    by_url = {client.url: client for client in clients.values()}
    return registration.register_at_any(config, by_url.__getitem__, 1, Cli(None, None), ())[0]


def test_a_machine_follows_its_hub_to_the_second_address(hub: HubApp, box: Box, tmp_path: Path) -> None:
    config = box.config(url=f"{OLD},{NEW}")
    first = register(config, old=InProcess(hub, OLD), new=Away(hub, NEW))
    assert first.state.remote_url == OLD
    box.stop(hub)
    with restored(hub, tmp_path) as copy:
        moved = register(config, old=Away(hub, OLD), new=InProcess(copy, NEW))
        assert (moved.state.agent_id, moved.state.remote_url) == (first.state.agent_id, NEW)
        box.stop(copy)
        # From now on that is the first address to be tried.
        back = register(config, old=InProcess(hub, OLD), new=InProcess(copy, NEW))
        assert back.state.remote_url == NEW


def test_nothing_is_sent_to_an_address_that_proves_nothing(hub: HubApp, box: Box) -> None:
    config = box.config(url=f"{OLD},{NEW}")
    register(config, old=InProcess(hub, OLD), new=Away(hub, NEW))
    secret = config.machine.read_text()
    stranger = Elsewhere(hub, NEW)
    with pytest.raises(Unreachable):
        register(config, old=Away(hub, OLD), new=stranger)
    assert stranger.sent
    assert not any(box.key in sent or "Bearer" in sent or "verifier" in sent for sent in stranger.sent)
    assert config.machine.read_text() == secret
    known = state.load(config.state)
    assert known is not None
    assert known.remote_url == OLD


def test_another_hub_with_the_same_key_is_not_followed(hub: HubApp, box: Box, tmp_path: Path) -> None:
    """It has another id; a machine goes there only if its address is named alone."""
    config = box.config(url=f"{OLD},{NEW}")
    register(config, old=InProcess(hub, OLD), new=Away(hub, NEW))
    with hub_app(tmp_path / "other") as other:
        foreign = Box(box.home, other.key("machines", "agent"))
        client = InProcess(other, NEW)
        with pytest.raises(Unreachable):
            register(foreign.config(url=f"{OLD},{NEW}"), old=Away(hub, OLD), new=client)
        assert not any("Bearer" in sent for sent in client.sent)


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("https://a.example/, https://b.example", ("https://a.example", "https://b.example")),
        ("https://a.example,https://a.example/", ("https://a.example",)),
    ],
)
def test_several_addresses_are_read(tmp_path: Path, text: str, urls: tuple[str, ...]) -> None:
    environment = {"OCC_HOME": str(tmp_path), "OCC_API_KEY": "key"}
    assert load({**environment, "OCC_REMOTE_URL": text}).remote_urls == urls
    with pytest.raises(ConfigError):
        load({**environment, "OCC_REMOTE_URL": f"{text},ftp://c.example"})
    (tmp_path / "config.toml").write_text(f"remote_url = {list(urls)!r}\n".replace("'", '"'))
    assert load(environment).remote_urls == urls
    assert Config(home=tmp_path).remote_urls == ()


def test_the_steps_of_a_move_are_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCC_HUB_HOME", str(tmp_path / "hub"))
    shown = CliRunner().invoke(occ_command, ["hub", "move", "https://new.example.com/"]).output
    assert "https://new.example.com'" in shown or "https://new.example.com " in shown
    for command in ("occ hub backup", "occ hub restore", "occ hub start", "occ stop --drain"):
        assert command in shown
    assert CliRunner().invoke(occ_command, ["hub", "move", "new.example.com"]).exit_code == 2


def test_a_running_agent_follows_its_hub(tmp_path: Path, free_port: int) -> None:
    with hub_in(tmp_path) as hub:
        hub.start()
        new = f"http://127.0.0.1:{free_port}"
        agent = hub.agent("box", OCC_REMOTE_URL=f"{hub.url},{new}")
        agent_id = hub.seen("box")["agentId"]
        hub.stop()
        hub.command("backup", "hub.tar.gz")
        moved = Hub(tmp_path / "moved", {**hub.environment, "OCC_HUB_HOME": str(tmp_path / "moved")}, hub.stack)
        moved.command("restore", "hub.tar.gz")
        moved.agent_key, moved.client_key, moved.url = hub.agent_key, hub.client_key, new
        moved.start()
        try:
            wait_until(lambda: moved.seen("box")["via"] == "link", "the machine to be linked with the moved hub", 60)
            assert moved.seen("box")["agentId"] == agent_id
            agent.attach()
            wait_until(lambda: agent.client.health()["status"] == "healthy", "the agent to have no problem")
        finally:
            for client in moved.clients:
                client.close()
            moved.stop()
