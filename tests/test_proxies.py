"""The hub and its clients with a proxy in between: origins, forwarded headers, cookies, answers of gateways."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from occ_app.cli import hub, start
from occ_app.client import streams
from occ_app.client.agent_client import AgentClient
from occ_app.config import config
from occ_app.errors import ConfigError, Lost, Refused
from occ_app.web.callers import is_own_origin
from occ_app.web.proxies import forwarded
from tests import sentences
from tests.hub_app import HubApp, hub_app

PUBLIC = "https://hub.example.com"


@pytest.mark.parametrize(
    ("public", "host", "origin", "own"),
    [
        (PUBLIC, "hub.example.com", PUBLIC, True),
        (PUBLIC, "hub.example.com:443", PUBLIC, True),
        (PUBLIC, "127.0.0.1:7700", PUBLIC, True),
        (PUBLIC, "127.0.0.1:7700", "https://HUB.example.com:443", True),
        ("https://hub.example.com:8443", "hub.example.com", "https://hub.example.com:8443", True),
        ("http://hub.example.com", "hub.example.com:80", "http://hub.example.com", True),
        (None, "localhost:7700", "http://localhost:7700", True),
        (None, "[::1]:7700", "http://[::1]:7700", True),
        (PUBLIC, "hub.example.com", "https://other.example.com", False),
        (PUBLIC, "hub.example.com:8443", PUBLIC, False),
        (PUBLIC, "hub.example.com", "null", False),
        (PUBLIC, "127.0.0.1:7700", "http://hub.example.com", False),
        (PUBLIC, "127.0.0.1:7700", "https://hub.example.com:8443", False),
        (None, "127.0.0.1:7700", PUBLIC, False),
        (None, "localhost", "https://localhost:8443", False),
        (None, "localhost", "https://localhost:nonsense", False),
    ],
)
def test_an_origin_is_the_request_s_host_or_the_public_url(
    public: str | None, host: str, origin: str, own: bool
) -> None:
    assert is_own_origin(origin, host, public, secure=False) is own


def test_over_tls_a_page_without_it_is_another_origin() -> None:
    assert not is_own_origin("http://hub.example.com", "hub.example.com", None, secure=True)


@pytest.mark.parametrize(
    ("peer", "sent", "client", "scheme"),
    [
        ("127.0.0.1", "203.0.113.7", "203.0.113.7", "https"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.7, 10.0.0.2", "203.0.113.7", "https"),
        ("127.0.0.1", "[2001:db8::1]:4711", "2001:db8::1", "https"),
        ("127.0.0.1", "203.0.113.7:4711", "203.0.113.7", "https"),
        ("127.0.0.1", "unknown", "127.0.0.1", "https"),
        ("127.0.0.1", "", "127.0.0.1", "https"),
        ("192.0.2.1", "203.0.113.7", "192.0.2.1", "http"),
        ("", "203.0.113.7", "", "http"),
    ],
)
def test_headers_of_a_proxy_count_only_from_a_trusted_one(peer: str, sent: str, client: str, scheme: str) -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], _: Any) -> list[bytes]:
        seen.update(environ)
        return []

    environ = {"REMOTE_ADDR": peer, "wsgi.url_scheme": "http", "HTTP_X_FORWARDED_PROTO": "https"}
    forwarded(app, ("127.0.0.1", "10.0.0.0/8"))(environ | {"HTTP_X_FORWARDED_FOR": sent}, lambda *_: None)
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == (client, scheme)


def test_a_public_url_of_a_hub_has_no_path_and_a_network_is_one(tmp_path: Path) -> None:
    homes = {"OCC_HOME": str(tmp_path), "OCC_HUB_HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match="no path"):
        config.load_hub(homes, {"public_url": "https://example.com/occ"})
    assert config.load_hub(homes, {"public_url": "https://example.com/"}).public_url == "https://example.com"
    assert config.load(homes, {"public_url": "https://example.com/occ"}).public_url == "https://example.com/occ"
    with pytest.raises(ConfigError, match="OCC_TRUSTED_PROXIES"):
        config.load(homes | {"OCC_TRUSTED_PROXIES": "10.0.0.0/8,proxy"}, {})


@pytest.mark.parametrize(("command", "load"), [(start.start, "load"), (hub.start, "load_hub")], ids=["agent", "hub"])
def test_proxies_are_named_by_an_option_too(command: click.Command, load: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = dict[str, Any]()

    def loaded(*, flags: dict[str, Any]) -> None:
        kept.update(flags)
        raise ConfigError("stop here")

    monkeypatch.setattr(config, load, loaded)
    CliRunner().invoke(command, ["--trusted-proxy", "10.0.0.0/8", "--trusted-proxy", "::1"])
    assert kept["trusted_proxies"] == "10.0.0.0/8,::1"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path, public_url=PUBLIC, allowed_hosts=("lan.test",)) as hub:
        yield hub


@pytest.mark.parametrize(
    ("base", "origin", "secure"),
    [
        ("http://hub.example.com", PUBLIC, True),
        ("http://127.0.0.1:7700", PUBLIC, True),  # a proxy that sends its own Host
        ("http://hub.example.com", None, True),
        ("http://lan.test:7700", "http://lan.test:7700", False),
        ("http://lan.test:7700", None, False),
    ],
)
def test_the_cookie_is_secure_by_the_scheme_that_the_browser_used(
    hub: HubApp, base: str, origin: str | None, secure: bool
) -> None:
    key = hub.key("me", "client")
    headers = {"Origin": origin} if origin else {}
    reply = hub.browser().post("/login", base_url=base, data={"key": key}, headers=headers)
    assert reply.status_code == 303, reply.text
    said = reply.headers["Set-Cookie"]
    assert said.startswith("__Host-occ-") is secure
    assert ("; Secure" in said) is secure
    cookie = said.partition(";")[0]
    assert (
        hub.app.test_client(use_cookies=False).get("/lists", base_url=base, headers={"Cookie": cookie}).status_code
        == 200
    )


def test_where_the_browser_speaks_tls_a_cookie_that_others_could_set_opens_nothing(hub: HubApp) -> None:
    key = hub.key("me", "client")
    said = hub.browser().post("/login", base_url="http://lan.test", data={"key": key}).headers["Set-Cookie"]
    cookie = {"Cookie": said.partition(";")[0]}
    assert (
        hub.app.test_client(use_cookies=False).get("/lists", base_url="http://lan.test", headers=cookie).status_code
        == 200
    )
    assert (
        hub.app.test_client(use_cookies=False)
        .get("/lists", base_url="https://hub.example.com", headers=cookie)
        .status_code
        == 401
    )


def test_two_hubs_have_cookies_of_two_names(tmp_path: Path) -> None:
    names = set()
    for name in ("one", "two"):
        with hub_app(tmp_path / name) as hub:
            reply = hub.browser().post("/login", data={"key": hub.key("me", "client")})
            names.add(reply.headers["Set-Cookie"].partition("=")[0])
        with hub_app(tmp_path / name) as hub:  # the same after a restart
            assert (
                hub.browser()
                .post("/login", data={"key": hub.key("also", "client")})
                .headers["Set-Cookie"]
                .partition("=")[0]
                in names
            )
    assert len(names) == 2


def test_a_cookie_that_does_not_come_back_is_said(hub: HubApp) -> None:
    key = hub.key("me", "client")
    base = "http://lan.test"
    browser = hub.app.test_client(use_cookies=False)
    before = browser.get("/", base_url=base, headers={"Referer": f"{base}/login"})
    assert before.headers["Location"] == "/login"
    browser.post("/login", base_url=base, data={"key": key})
    after = browser.get("/runs/e1", base_url=base, headers={"Referer": f"{base}/login"})
    assert after.headers["Location"] == "/login?next=%2Fruns%2Fe1&cookie=missing"
    assert sentences.DID_NOT_SEND_THE_LOGIN_COOKIE in browser.get(after.headers["Location"], base_url=base).text
    assert browser.get("/", base_url=base).headers["Location"] == "/login"


# ---- A gateway that answers for an agent it does not reach


EVENTS = [("queued", '{"position":1}'), ("output", '{"chunk":"text"}'), ("complete", '{"exitCode":0}')]


class Gateway(BaseHTTPRequestHandler):
    """Answers with the statuses it is given, then as an agent that runs e1."""

    statuses: list[int]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.statuses:
            self._page(self.statuses.pop(0))
            return
        after = int(self.headers["Last-Event-ID"])
        name, data = EVENTS[after]  # one for each connection, which then breaks
        body = f"id: {after + 1}\nevent: {name}\ndata: {data}\n\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(body)
        if after == 0:
            type(self).statuses = list(self.later)

    later: tuple[int, ...] = ()

    def _page(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"no")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[tuple[str, type[Gateway]]]:
    kind = type("One", (Gateway,), {"statuses": [], "later": ()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", kind
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 520, 524])
def test_a_gateway_s_answer_is_tried_again(gateway: tuple[str, type[Gateway]], status: int) -> None:
    url, kind = gateway
    kind.statuses, kind.later = [status], (status, status)
    told = list(AgentClient(url, "made-up").execute("w", "hello", executionId="e1"))
    assert [event.name for event in told] == ["queued", "output", "complete"]


def test_other_answers_are_not_tried_again(gateway: tuple[str, type[Gateway]]) -> None:
    url, kind = gateway
    kind.statuses = [404]
    with pytest.raises(Refused) as refused:
        list(AgentClient(url, "made-up").execute("w", "hello"))
    assert refused.value.status == 404


def test_a_client_that_gives_up_says_that_the_run_goes_on(
    gateway: tuple[str, type[Gateway]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_PATIENCE_SECONDS", 0.2)
    url, kind = gateway
    kind.later = (502,) * 1000
    with pytest.raises(Lost, match=r"502.* goes on there .* e1\."):
        list(AgentClient(url, "made-up").execute("w", "hello", executionId="e1"))
    kind.statuses = [502] * 1000
    with pytest.raises(Refused, match="is away"):  # nothing was accepted, so nothing goes on
        list(AgentClient(url, "made-up").execute("w", "hello", executionId="e2"))
