"""Logging in to agents and hubs elsewhere, and which one a command means."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from occ_app import errors
from occ_app.cli import output, remote, remotes
from occ_app.cli.commands import occ as occ_command
from occ_app.config import config as configuration
from tests.conftest import Occ, occ_in

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    """An agent with a certificate that it made itself; its workspace is `work`."""
    with occ_in(tmp_path_factory.mktemp("secured"), OCC_WORKERS="1") as occ:
        occ.start("--tls", "self-signed")
        occ.workspace()
        yield occ


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The `occ` command in this process, as a user whose home is empty and who types `typed` on a terminal, if any."""
    for name in ("OCC_URL", "OCC_TOKEN", "OCC_PIN", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OCC_HOME", str(tmp_path / "home"))

    def run(*arguments: str, typed: str | None = None) -> Result:
        monkeypatch.setattr(output, "interactive", lambda: typed is not None)
        return CliRunner().invoke(occ_command, list(arguments), input=typed)

    return run


@pytest.fixture
def listener(secured: Occ) -> Iterator[tuple[str, list[bytes]]]:
    """The address of a TLS server with the agent's certificate, and the bytes that clients sent after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secured.home / "tls.pem")
    received: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as tls:
                    received.append(tls.recv(4096))
            except OSError:
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://127.0.0.1:{server.getsockname()[1]}", received
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_a_login_makes_every_command_work_without_options(secured: Occ, command: Command) -> None:
    shown = command("login", secured.url, "--name", "box", typed=f"y\n{secured.token}\n")
    assert shown.exit_code == 0, shown.output
    assert secured.pin is not None
    assert secured.pin in shown.stderr
    assert secured.token not in shown.output
    for arguments in (["workspaces", "list"], ["jobs"], ["run", "--workspace", "work", "hello"]):
        done = command(*arguments)
        assert done.exit_code == 0, done.output
        assert f"at agent box ({secured.url})" in done.stderr
    assert "work" in command("workspaces", "list").stdout


def test_the_stored_keys_are_closed_to_other_users_and_not_shown(
    secured: Occ, command: Command, tmp_path: Path
) -> None:
    assert secured.pin is not None
    assert command("login", secured.url, "--token", secured.token, "--pin", secured.pin.lower()).exit_code == 0
    path = tmp_path / ".local/state/occ/remotes.json"
    assert secured.token in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    listed = command("remotes", "--json")
    assert secured.token not in listed.output
    entry = {"name": "127.0.0.1", "kind": "agent", "url": secured.url, "pin": secured.pin, "default": True}
    assert json.loads(listed.stdout) == {"remotes": [entry]}
    path.chmod(0o640)
    with pytest.raises(errors.ConfigError):
        remotes.listing()


@pytest.mark.parametrize("typed", [None, "n\n", "\n"])
def test_a_certificate_that_is_not_confirmed_gets_no_key(
    listener: tuple[str, list[bytes]], command: Command, typed: str | None
) -> None:
    url, received = listener
    shown = command("login", url, "--token", "occ_secret", typed=typed)
    assert isinstance(shown.exception, errors.Untrusted)
    assert set(received) <= {b""}
    assert not remotes.listing()


def test_another_certificate_than_the_pinned_one_gets_no_key(
    listener: tuple[str, list[bytes]], command: Command
) -> None:
    url, received = listener
    shown = command("login", url, "--token", "occ_secret", "--pin", ":".join(["3A"] * 32), typed="y\n")
    assert isinstance(shown.exception, errors.Untrusted)
    assert set(received) <= {b""}


def test_a_key_that_is_refused_is_not_stored(secured: Occ, command: Command) -> None:
    assert secured.pin is not None
    shown = command("login", secured.url, "--token", "occ_wrong", "--pin", secured.pin)
    assert isinstance(shown.exception, errors.Refused)
    assert not remotes.listing()


def test_without_a_terminal_the_key_is_not_asked_for(secured: Occ, command: Command) -> None:
    assert secured.pin is not None
    assert command("login", secured.url, "--pin", secured.pin).exit_code == 2


def test_logout_forgets_the_key_and_returns_to_this_machine(secured: Occ, command: Command, tmp_path: Path) -> None:
    _store(secured, "box")
    assert command("logout").exit_code == 0
    assert secured.token not in (tmp_path / ".local/state/occ/remotes.json").read_text()
    assert remote.decide(None, None, None) is None
    assert command("logout").exit_code == 2
    assert command("logout", "box").exit_code == 2


def _store(secured: Occ, name: str) -> None:
    remotes.save(remotes.Remote(name, secured.url, "agent", secured.token, secured.pin))


def test_one_order_decides_which_agent_or_hub_is_meant(
    secured: Occ, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("remotes")
    assert remote.decide(None, None, None) is None
    remotes.save(remotes.Remote("hub", "https://hub.example", "hub", "key", None))
    _store(secured, "box")
    command("remotes", "use", "hub")

    def meant(url: str | None = None, token: str | None = None, **options: bool) -> tuple[str, str, str | None] | None:
        place = remote.decide(url, token, None, **options)
        return None if place is None else (place.url, place.token, place.pin)

    box = (secured.url, secured.token, secured.pin)
    assert meant() == ("https://hub.example", "key", None)
    assert meant(token="other") == ("https://hub.example", "other", None)
    assert meant(hub=True) is None
    assert meant("local") is None
    assert meant("box") == meant(secured.url) == box
    monkeypatch.setenv("OCC_TOKEN", "variable")
    assert meant() == ("https://hub.example", "key", None)
    assert meant("box") == box
    assert meant("https://elsewhere.example") == ("https://elsewhere.example", "variable", None)
    monkeypatch.setenv("OCC_URL", "https://third.example")
    monkeypatch.setenv("OCC_PIN", ":".join(["AB"] * 32))
    assert meant() == ("https://third.example", "variable", ":".join(["AB"] * 32))
    assert meant("local") is None
    command("remotes", "use", "local")
    monkeypatch.delenv("OCC_URL")
    assert meant() is None
    monkeypatch.delenv("OCC_TOKEN")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["jobs", "--url", "nobody"], 2),
        (["remotes", "use", "nobody"], 2),
        (["login", "ftp://hub"], 2),
        (["login", "http://127.0.0.1:1", "--pin", ":".join(["AB"] * 32)], 2),
        (["login", "https://127.0.0.1:1", "--pin", "AB"], 2),
        (["login", "https://hub.example", "--name", "local"], 2),
        (["login", "https://hub.example", "--name", "local-hub"], 2),
        (["login", "https://hub.example", "--name", "a/b"], 2),
    ],
)
def test_a_remote_that_cannot_be_meant_is_refused(command: Command, arguments: list[str], code: int) -> None:
    assert command(*arguments).exit_code == code


def test_a_name_is_never_given_to_a_second_address(command: Command) -> None:
    remotes.save(remotes.Remote("hub", "https://hub.example", "hub", "key", None))
    assert command("login", "https://other.example", "--name", "hub").exit_code == 2
    assert remotes.free_name("https://hub.example") == "hub"
    remotes.save(remotes.Remote("hub.example", "https://hub.example:8000", "hub", "key", None))
    assert remotes.free_name("https://hub.example:9000") == "hub.example-2"


def test_a_key_reaches_only_the_address_that_it_was_stored_for(command: Command) -> None:
    remotes.save(remotes.Remote("hub", "https://hub.example", "hub", "key", None))
    for url in ("http://hub.example", "https://hub.example:444", "https://hub.example.org"):
        assert command("workspaces", "list", "--url", url).exit_code == 2


def test_commands_that_change_the_remotes_at_once_lose_none(command: Command) -> None:
    command("remotes")
    threads = [
        threading.Thread(
            target=lambda number=number: remotes.save(  # type: ignore[misc]  # mypy does not infer the default
                remotes.Remote(f"r{number}", f"https://r{number}.example", "hub", "key", None)
            )
        )
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(remotes.listing()) == 8


def test_an_unknown_variable_is_a_warning_that_names_the_nearest(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCC_TOKNE", "x")
    shown = command("remotes")
    assert "OCC_TOKNE" in shown.stderr
    assert "OCC_TOKEN?" in shown.stderr
    assert shown.exit_code == 0
    monkeypatch.delenv("OCC_TOKNE")
    assert not configuration.unknown_variables()
