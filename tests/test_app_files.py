"""The files with which a browser installs the pages as an app."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.hub_app import HubApp, hub_app


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubApp]:
    with hub_app(tmp_path_factory.mktemp("app")) as hub:
        yield hub


def png_size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_a_browser_without_a_login_finds_all_that_an_installation_takes(hub: HubApp) -> None:
    browser = hub.browser()
    page = browser.get("/login").text
    assert '<link rel="manifest" href="/manifest.webmanifest">' in page
    assert 'rel="apple-touch-icon" href="/static/icon-full-180.png' in page
    manifest = browser.get("/manifest.webmanifest")
    assert manifest.content_type == "application/manifest+json"
    assert manifest.json is not None
    assert (manifest.json["start_url"], manifest.json["display"]) == ("/", "standalone")
    for icon in manifest.json["icons"]:
        found = browser.get(icon["src"])
        assert found.status_code == 200
        if icon["type"] == "image/png":
            size, _ = png_size(found.data)
            assert icon["sizes"] == f"{size}x{size}"
    assert png_size(browser.get("/static/icon-full-180.png").data) == (180, 180)


def test_the_service_worker_serves_push_alone(hub: HubApp) -> None:
    worker = hub.browser().get("/service-worker.js")
    assert (worker.status_code, worker.headers["Cache-Control"]) == (200, "no-store")
    assert worker.content_type.startswith("text/javascript")
    assert '"push"' in worker.text
    assert not {word for word in ('"fetch"', "caches", "importScripts") if word in worker.text}
    policy = worker.headers["Content-Security-Policy"]
    assert "worker-src 'self'" in policy
    assert "manifest-src 'self'" in policy
