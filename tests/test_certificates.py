"""Certificates that are renewed while they are served, and those that have expired."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from occ_app.client.agent_client import AgentClient
from occ_app.config.config import Config
from occ_app.errors import Untrusted
from occ_app.home import certificate
from occ_app.home.certificate_dates import expires_at, first_certificate
from occ_app.web.tls_socket import ServerContexts
from tests import sentences
from tests.conftest import occ_in

CA = """
[ca]
default_ca = own
[own]
database = index
serial = serial
new_certs_dir = .
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = IP:127.0.0.1
basicConstraints = CA:TRUE
"""


def make(folder: Path, name: str, start: str = "20200101000000Z", end: str = "20991231235959Z") -> tuple[Path, Path]:
    """Write cert.pem and key.pem, valid for these dates, over what is there."""
    work = folder / f"made-{name}"
    work.mkdir()
    (work / "ca.cnf").write_text(CA)
    (work / "index").touch()
    (work / "serial").write_text("01\n")
    request = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    request += ["-subj", f"/CN={name}", "-keyout", "key", "-out", "request"]
    sign = ["openssl", "ca", "-batch", "-selfsign", "-config", "ca.cnf", "-keyfile", "key", "-in", "request", "-notext"]
    sign += ["-out", "chain", "-startdate", start, "-enddate", end]
    for command in (request, sign):
        subprocess.run(command, cwd=work, check=True, capture_output=True)
    for made, place in (("key", "key.pem"), ("chain", "cert.pem")):
        shutil.copyfile(work / made, folder / place)
    return folder / "cert.pem", folder / "key.pem"


def made_anew(path: Path, moment: int) -> None:
    """Give a file a time of its own, where the clock of the file system is too coarse to tell two writes apart."""
    os.utime(path, ns=(moment, moment))


@pytest.mark.parametrize(
    ("end", "right"),
    [
        ("20491231235959Z", datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),  # two digits of the year
        ("20500101000000Z", datetime(2050, 1, 1, tzinfo=UTC)),  # four
        ("20240229120000Z", datetime(2024, 2, 29, 12, tzinfo=UTC)),
    ],
)
def test_the_date_of_expiry_is_read(tmp_path: Path, end: str, right: datetime) -> None:
    chain, _ = make(tmp_path, "dated", end=end)
    assert expires_at(first_certificate(chain.read_text())) == right


@pytest.mark.parametrize("cut", [0, 1, 5, 40, 100])
def test_no_certificate_has_no_date(tmp_path: Path, cut: int) -> None:
    der = first_certificate(make(tmp_path, "cut")[0].read_text())
    with pytest.raises(ValueError, match="it "):
        expires_at(der[:cut])


def test_a_renewed_certificate_is_served_to_the_next_connection(tmp_path: Path) -> None:
    chain, key = make(tmp_path, "old")
    contexts = ServerContexts(certificate.checked(chain, key))
    first = contexts.current()
    assert contexts.current() is first
    old_key = key.read_bytes()
    make(tmp_path, "renewed")
    new_key = key.read_bytes()
    key.write_bytes(old_key)  # as between the two writes of a renewal
    made_anew(key, 1)
    assert contexts.current() is first
    key.write_bytes(new_key)
    made_anew(key, 2)
    second = contexts.current()
    assert second is not first
    chain.unlink()
    assert contexts.current() is second


def test_an_expired_certificate_is_a_problem(tmp_path: Path) -> None:
    config = Config(home=tmp_path)
    assert certificate.problems(config) == []
    chain, key = make(tmp_path, "old", end="20200102000000Z")
    with_tls = replace(config, tls_cert=str(chain), tls_key=str(key))
    assert "expired on 2020-01-02" in certificate.problems(with_tls)[0]
    make(tmp_path, "renewed")
    assert certificate.problems(with_tls) == []


def test_a_start_with_an_expired_certificate_says_so_and_a_renewed_one_is_served(tmp_path: Path) -> None:
    chain, key = make(tmp_path, "old", end="20200102000000Z")
    with occ_in(tmp_path) as occ:
        said = occ.command("start", "--tls-cert", str(chain), "--tls-key", str(key))
        assert "expired on 2020-01-02" in said.stderr
        assert "expired on 2020-01-02" in occ.command("status").stdout
        make(tmp_path, "renewed")
        assert "expired on" not in occ.command("status").stdout
        host, port = json.loads(occ.command("status", "--json").stdout)["url"].rpartition("/")[2].split(":")
        served = ssl.get_server_certificate((host, int(port)))
        assert first_certificate(served) == first_certificate(chain.read_text())


@pytest.fixture
def expired(tmp_path: Path) -> Iterator[str]:
    """A server with an expired certificate that is trusted otherwise."""
    chain, key = make(tmp_path, "old", end="20200102000000Z")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the client ends the handshake
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_advice_for_an_expired_certificate_is_to_renew_it(
    expired: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with pytest.raises(Untrusted, match=sentences.HAS_EXPIRED_RENEW_IT) as refused:
        AgentClient(expired, "made-up").health()
    assert "--pin" not in str(refused.value)
