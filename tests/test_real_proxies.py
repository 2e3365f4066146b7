"""The configurations of docs/proxies.md, each run by its proxy in front of a real hub."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from occ_app.client.agent_client import AgentClient
from occ_app.home.certificate import fingerprint_of
from tests.conftest import make_zip, output, steps, wait_until
from tests.real_hub import Hub, hub_in

pytestmark = [
    pytest.mark.proxies,
    pytest.mark.skipif(not os.environ.get("TEST_ALL"), reason="proxies are run by `make test-all`"),
]

PAGE = (Path(__file__).parent.parent / "docs" / "proxies.md").read_text()
APACHE = """
ServerRoot {folder}
PidFile {folder}/apache.pid
ErrorLog {folder}/apache.log
Mutex file:{folder}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
LoadModule headers_module /usr/lib/apache2/modules/mod_headers.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
LoadModule proxy_wstunnel_module /usr/lib/apache2/modules/mod_proxy_wstunnel.so
Listen 127.0.0.1:{port}
"""
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{}}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
"""


def program(name: str) -> str:
    """The path of a proxy. Where it is missing the test is skipped, and on CI it fails."""
    found = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
    if found is None:
        reason = f"THE CONFIGURATION OF {name} IS NOT TESTED: install it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def command(kind: str, folder: Path, port: int, hub_port: int) -> list[str]:
    """Write the configuration of the page, with this machine's ports and files, and return what runs it."""
    block = re.search(rf"<!-- {kind} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    text = block[1].replace("127.0.0.1:7700", f"127.0.0.1:{hub_port}").replace("hub.example.com", "localhost")
    text = text.replace("/etc/ssl/", f"{folder}/")
    path = folder / f"{kind}.conf"
    if kind == "nginx":
        text = text.replace("listen 443", f"listen 127.0.0.1:{port}")
        path.write_text(NGINX.format(folder=folder) + text + "}\n")
        return [program("nginx"), "-p", str(folder), "-c", str(path)]
    if kind == "caddy":
        text = text.replace("localhost {", f"https://localhost:{port} {{", 1)
        path.write_text("{\n    admin off\n    auto_https disable_redirects\n}\n" + text)
        return [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(path)]
    if kind == "haproxy":
        path.write_text(text.replace("bind :443", f"bind 127.0.0.1:{port}"))
        return [program("haproxy"), "-db", "-f", str(path)]
    path.write_text(APACHE.format(folder=folder, port=port) + text.replace("*:443", f"127.0.0.1:{port}"))
    return [program("apache2"), "-f", str(path), "-DFOREGROUND"]


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that trusts proxies of this machine, and the workspace `work`."""
    with hub_in(tmp_path_factory.mktemp("proxies"), OCC_HUB_TRUSTED_PROXIES="127.0.0.1") as hub:
        hub.start()
        hub.agent("box")
        hub.client.upload("work", make_zip({"a": "a"}))
        yield hub


@pytest.fixture(params=["nginx", "caddy", "haproxy", "apache"])
def proxied(request: pytest.FixtureRequest, hub: Hub, tmp_path: Path, free_port: int) -> Iterator[tuple[str, str]]:
    """The address of the hub behind a proxy, and the fingerprint of the proxy's certificate."""
    request_line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    request_line += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    chain, key = tmp_path / "hub.pem", tmp_path / "hub.key"
    subprocess.run([*request_line, "-keyout", str(key), "-out", str(chain)], check=True, capture_output=True)
    (tmp_path / "hub-and-key.pem").write_text(chain.read_text() + key.read_text())
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(
            command(request.param, tmp_path, free_port, int(hub.url.rpartition(":")[2])),
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: answers(free_port) or started.poll() is not None, "the proxy listens", 30)
        assert started.poll() is None, (tmp_path / "log").read_text()
        fingerprint = fingerprint_of(chain)
        assert fingerprint is not None
        yield f"https://localhost:{free_port}", fingerprint
    finally:
        started.terminate()
        started.wait(30)


def test_a_proxy_as_documented_serves_pages_streams_and_links(hub: Hub, proxied: tuple[str, str]) -> None:
    url, pin = proxied
    with urllib3.PoolManager(retries=False, cert_reqs="CERT_NONE", assert_fingerprint=pin) as pool:
        fields = {"key": hub.client_key}
        said = pool.request(
            "POST", f"{url}/login", fields=fields, encode_multipart=False, headers={"Origin": url}, redirect=False
        )
        assert said.status == 303, said.data
        cookie = said.headers["Set-Cookie"].partition(";")[0]
        assert cookie.startswith("__Host-")
        assert pool.request("GET", f"{url}/lists", headers={"Cookie": cookie}).status == 200
    client = AgentClient(url, hub.client_key, pin)
    client.upload("large", make_zip({"a": os.urandom(3_000_000)}))
    began, events = time.monotonic(), client.execute("work", steps({"say": "begun "}, {"wait": "go"}, {"say": "ended"}))
    seen = [next(events)]
    while seen[-1].name != "output":
        seen.append(next(events))  # before the run ends, so that nothing in between holds events back
    assert time.monotonic() - began < 30
    (hub.home.parent / "box" / "workspaces" / "work" / "go").touch()
    seen += events
    assert output(seen) == "begun ended"
    (hub.home.parent / "box" / "workspaces" / "work" / "go").unlink()
    client.close()
    machine = hub.agent("behind", OCC_REMOTE_URL=url, OCC_REMOTE_PIN=pin)
    wait_until(lambda: '"linked": true' in machine.command("status", "--json").stdout, "the link is held")
    machine.stop()
    hub.command("agents", "remove", "behind")
    shutil.rmtree(machine.home)
