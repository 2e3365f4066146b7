"""TLS: the agent's own certificate and the operator's, the pin, and that nothing else changes by it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from simple_websocket import Client, ConnectionClosed

from occ_app.client.agent_client import AgentClient
from occ_app.errors import Refused, Unreachable
from tests import sentences
from tests.conftest import Occ, make_zip, occ_in, output, steps, wait_until
from tests.promises import HEALTH_SECONDS, counted, prompt

OTHER = "AB" * 32


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    """A running agent with a certificate of its own and one workspace."""
    with occ_in(tmp_path_factory.mktemp("tls")) as occ:
        occ.start("--tls", "self-signed", "--bind-address", "0.0.0.0")
        occ.workspace()
        yield occ


@pytest.fixture(scope="module")
def stalled(secure: Occ) -> Iterator[dict[str, socket.socket]]:
    """Connections that stall from the first test of this file on: by the last test their limit of 20 s is over."""
    with contextlib.ExitStack() as held:
        handshake, head, plain = (
            held.enter_context(socket.create_connection(address(secure), timeout=60)) for _ in range(3)
        )
        handshake.sendall(b"\x16\x03\x01")  # the first bytes of a handshake
        encrypted = held.enter_context(trusting().wrap_socket(head))
        encrypted.sendall(b"GET /hea")
        yield {"handshake": handshake, "head": encrypted, "nothing": plain}


@pytest.fixture(scope="module")
def unread(secure: Occ) -> Iterator[int]:
    """The port of a reader that takes nothing of 12 MB from the first test of this file on."""
    stream = secure.client.execute("work", steps({"say": "x" * 8000, "times": 1500}), executionId="unread")
    assert list(stream)[-1].name == "complete"
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect(address(secure))
    with trusting().wrap_socket(plain) as lazy:
        port = lazy.getsockname()[1]
        lazy.sendall(asking(secure, "unread"))
        wait_until(lambda: _state(secure, port) == "01", "its connection to be there")
        yield port


@pytest.mark.usefixtures("stalled", "unread")
def test_connections_that_stall_disturb_nobody(secure: Occ) -> None:
    """They do so from here on, and the last tests of this file look at their ends."""
    assert secure.client.health()["version"]


def address(occ: Occ) -> tuple[str, int]:
    host, port = re.fullmatch(r"https?://(.*):(\d+)", occ.url).groups()  # type: ignore[union-attr]
    return host, int(port)


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def asking(occ: Occ, execution_id: str) -> bytes:
    """A request for an execution's events."""
    head = f"GET /executions/{execution_id}/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}Authorization: Bearer {occ.token}\r\n\r\n".encode()


def make_certificate(folder: Path, *more: str) -> tuple[Path, Path]:
    chain, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    command += [
        "-subj",
        "/CN=made-up",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(chain),
    ]
    subprocess.run([*command, *(more or ("-nodes",))], check=True, capture_output=True)
    return chain, key


def test_everything_works_over_tls(secure: Occ, tmp_path: Path) -> None:
    assert secure.url.startswith("https://127.0.0.1:")
    events = secure.run(prompt(50, 0))
    assert output(events) == counted(50)
    assert secure.client.health()["status"] == "healthy"
    assert secure.client.upload("large", make_zip({"large": os.urandom(3_000_000)}))["bytes"] == 3_000_000
    with (tmp_path / "back.zip").open("wb") as file:
        secure.client.archive("large", file)
    assert (tmp_path / "back.zip").stat().st_size > 3_000_000


def test_it_shows_the_certificate_it_told_and_keeps_it_and_two_agents_share_no_secret(occ: Occ, secure: Occ) -> None:
    told = occ.command("start", "--tls", "self-signed", "--bind-address", "0.0.0.0")
    occ.attach()
    assert occ.pin is not None
    assert occ.pin in told.stdout
    assert "without TLS" not in told.stderr
    assert occ.pin in occ.command("status").stdout
    assert json.loads(occ.command("status", "--json").stdout)["tlsFingerprint"] == occ.pin
    shown = ssl.get_server_certificate(address(occ))
    assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown)).digest().hex(":").upper() == occ.pin
    assert (occ.home / "tls.pem").stat().st_mode & 0o777 == 0o600
    assert occ.pin != secure.pin
    assert occ.token != secure.token
    first = occ.pin
    occ.stop()
    occ.start("--tls", "self-signed")
    assert occ.pin == first


def test_run_trusts_the_pinned_certificate_and_no_other(secure: Occ) -> None:
    def run(*options: str, code: int = 0) -> str:
        command = ("run", "--url", secure.url, "--token", secure.token, "--workspace", "work", *options, "hello")
        done = secure.command(*command, check=False)
        assert done.returncode == code, done.stderr
        return str(done.stdout + done.stderr)

    assert "hello" in run("--pin", str(secure.pin))
    assert "hello" in run("--pin", str(secure.pin).replace(":", "").lower())
    assert "--pin" in run(code=5)
    assert "another certificate" in run("--pin", OTHER, code=5)
    assert "fingerprint" in run("--pin", "AB:CD", code=2)


def test_a_pin_without_tls_is_a_mistake(agent: Occ) -> None:
    done = agent.command("run", "--url", agent.url, "--token", agent.token, "--pin", OTHER, "hello", check=False)
    assert (done.returncode, "https" in done.stderr) == (2, True)


def test_a_wrong_pin_never_shows_the_token(tmp_path: Path) -> None:
    """What is between must not get the token of one who pinned."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(20)
        received = pool.submit(_first_data, listener, context)
        client = AgentClient(f"https://127.0.0.1:{listener.getsockname()[1]}", "made-up-token", OTHER)
        with pytest.raises(Unreachable, match="another certificate"):
            client.health()
        client.close()
        assert received.result() == b""


def _first_data(listener: socket.socket, context: ssl.SSLContext) -> bytes:
    """What the first client sends once TLS stands."""
    plain, _ = listener.accept()
    plain.settimeout(20)
    with context.wrap_socket(plain, server_side=True) as connection:
        try:
            return connection.recv(65536)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_plain_http_is_told_to_use_https(secure: Occ) -> None:
    with socket.create_connection(address(secure), timeout=10) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = plain.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "https://" in json.loads(answer.partition(b"\r\n\r\n")[2])["message"]
    client = AgentClient(secure.url.replace("https", "http"), secure.token)
    with pytest.raises(Refused, match="https"):
        client.health()
    client.close()


def test_tls_to_a_plain_agent_is_told(agent: Occ) -> None:
    client = AgentClient(agent.url.replace("http", "https"), agent.token, OTHER)
    with pytest.raises(Unreachable, match="http://"):
        client.health()
    client.close()


def test_old_tls_is_refused(secure: Occ) -> None:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", "{}:{}".format(*address(secure)), "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert "Cipher is (NONE)" in done.stdout


def test_a_stream_ends_so_that_a_cut_cannot_look_like_its_end(secure: Occ) -> None:
    secure.run("hello", executionId="whole")
    with (
        socket.create_connection(address(secure), timeout=20) as plain,
        trusting().wrap_socket(plain, suppress_ragged_eofs=False) as connection,
    ):
        connection.sendall(asking(secure, "whole"))
        received = b""
        while data := connection.recv(65536):  # an end without TLS's own goodbye would raise
            received += data
    assert b"event: complete" in received


def test_a_websocket_over_tls_brings_every_event(secure: Occ) -> None:
    events = secure.run(prompt(2000, 0), executionId="long-talk")
    url = f"{secure.url.replace('https', 'wss')}/executions/long-talk/ws"
    socket_ = Client.connect(url, ssl_context=trusting(), headers={"Authorization": f"Bearer {secure.token}"})
    received = []
    with contextlib.suppress(ConnectionClosed):
        while message := socket_.receive(timeout=20):
            received.append(json.loads(message)["id"])
    assert received == [event.seq for event in events]


def test_clients_that_stall_in_tls_keep_nobody_waiting(secure: Occ) -> None:
    with contextlib.ExitStack() as held:
        for number in range(60):
            plain = held.enter_context(socket.create_connection(address(secure), timeout=20))
            if number % 3 == 0:
                plain.sendall(b"\x16\x03\x01")  # the first bytes of a handshake
            else:
                connection = held.enter_context(trusting().wrap_socket(plain))
                if number % 3 == 1:
                    connection.sendall(b"GET /hea")
        begun = time.monotonic()
        assert secure.client.health()["version"]
        assert time.monotonic() - begun < HEALTH_SECONDS
    assert "Traceback" not in secure.logs()


def _state(occ: Occ, port: int) -> str | None:
    """How the server's side of a connection from `port` stands, as /proc/net/tcp writes it; 01 is established."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state = line.split()[1:4]
        if local.endswith(f":{address(occ)[1]:04X}") and remote.endswith(f":{port:04X}"):
            return state
    return None


def test_a_certificate_of_the_operator_s_is_served_and_verified(occ: Occ, tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path)
    occ.start("--tls-cert", str(chain), "--tls-key", str(key))
    occ.workspace()
    command = ("run", "--url", occ.url, "--token", occ.token, "--workspace", "work", "hello")
    assert "hello" in occ.command(*command, SSL_CERT_FILE=str(chain)).stdout
    assert occ.command(*command, check=False).returncode == 5


def test_a_certificate_that_cannot_be_used_is_told_before_anything_runs(occ: Occ, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "locked").mkdir()
    (tmp_path / "text").write_text("no certificate")
    chain, key = make_certificate(tmp_path)
    _, other = make_certificate(tmp_path / "other")
    _, locked = make_certificate(tmp_path / "locked", "-passout", "pass:made-up")

    def refused(chain: Path, key: Path) -> str:
        done = occ.command("start", "--tls-cert", str(chain), "--tls-key", str(key), check=False)
        assert done.returncode == 1
        assert not occ.processes()
        return str(done.stderr)

    assert "belong together" in refused(chain, other)
    assert "passphrase" in refused(chain, locked)
    assert "PEM" in refused(tmp_path / "text", key)
    assert sentences.NO_SUCH_FILE in refused(tmp_path / "missing", key)


@pytest.mark.parametrize(
    "options",
    [
        ("--tls-cert", "a"),
        ("--tls-key", "a"),
        ("--tls", "yes"),
        ("--tls", "self-signed", "--tls-cert", "a", "--tls-key", "b"),
    ],
)
def test_settings_that_do_not_go_together_are_told(occ: Occ, options: tuple[str, ...]) -> None:
    done = occ.command("start", *options, check=False)
    assert done.returncode == 2
    assert re.search("TLS|--tls", done.stderr)


def test_without_openssl_it_says_what_to_do(occ: Occ, tmp_path: Path) -> None:
    done = occ.command("start", "--tls", "self-signed", check=False, PATH=str(tmp_path))
    assert (done.returncode, "--tls-cert" in done.stderr) == (1, True)


@pytest.mark.parametrize("kind", ["handshake", "head", "nothing"])
def test_a_connection_that_stalls_is_given_up(secure: Occ, stalled: dict[str, socket.socket], kind: str) -> None:
    """In a whole agent with its limit of 20 s; test_admission.py has shorter ones."""
    with contextlib.suppress(ConnectionResetError):
        assert stalled[kind].recv(100) == b""
    assert "Traceback" not in secure.logs()


def test_a_reader_that_reads_nothing_loses_its_connection(secure: Occ, unread: int) -> None:
    wait_until(lambda: _state(secure, unread) != "01", "its connection to be given up", 90)
