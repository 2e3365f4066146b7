"""occ up and occ down: a hub and an agent that have joined, and a link to the page; refused where others could read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from click.testing import CliRunner

from occ_app.cli.commands import occ as occ_command
from tests.conftest import Occ, occ_in, wait_until


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Occ, Any]]:
    """Both daemons after `occ up`, and what it printed."""
    folder = tmp_path_factory.mktemp("up")
    with occ_in(folder, OCC_HUB_HOME=str(folder / "hub")) as occ:
        try:
            yield occ, occ.command("up", "--port", "0")
        finally:
            occ.command("down")


def machines(occ: Occ) -> list[tuple[str, str]]:
    """The state of each machine of the hub, and how the hub reaches it."""
    listed = json.loads(occ.command("hub", "agents", "--json").stdout)["agents"]
    return [(machine["state"], machine["via"]) for machine in listed]


def redeemed(link: str) -> tuple[int, str]:
    """The status of the page after logging in with a link as a browser does, and its text."""
    address, _, code = link.strip().partition("#")
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request("POST", address, fields={"code": code, "device": "desk"}, redirect=False)
        cookie = answer.headers.get("Set-Cookie", "").split(";")[0]
        page = pool.request("GET", address.removesuffix("pair"), headers={"Cookie": cookie}, redirect=False)
    return page.status, page.data.decode()


def test_one_command_leads_to_a_page_with_this_machine_on_it(up: tuple[Occ, Any]) -> None:
    occ, printed = up
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/pair#(\w{4}-){2}\w{4}\n", printed.stdout)
    wait_until(lambda: machines(occ) == [("online", "link")], "the machine to have joined")
    assert redeemed(printed.stdout)[0] == 200
    assert redeemed(printed.stdout)[0] == 303
    assert "desk" in occ.command("hub", "sessions").stdout


def test_the_code_is_in_no_log(up: tuple[Occ, Any]) -> None:
    occ, printed = up
    redeemed(printed.stdout)
    code = printed.stdout.strip().rpartition("#")[2]
    logs = [path.read_text() for home in (occ.home, occ.home.parent / "hub") for path in home.glob("logs/*.log")]
    assert logs
    assert not any(code in log or code.replace("-", "") in log for log in logs)


def test_the_ceiling_on_loopback_is_ask(up: tuple[Occ, Any]) -> None:
    occ, _ = up
    occ.attach()
    body = {"workspaceId": occ.workspace(), "executionId": "e1", "prompt": "x", "permissions": "full"}
    refused = occ.request("POST", "/execute", json_body=body)
    assert refused.json()["code"] == "PERMISSION_CEILING"


def test_up_again_prints_another_link_to_the_same_hub(up: tuple[Occ, Any]) -> None:
    occ, printed = up
    again = occ.command("up").stdout
    assert again != printed.stdout
    assert again.partition("#")[0] == printed.stdout.partition("#")[0]
    assert redeemed(again)[0] == 200
    changed = occ.command("up", "--port", "0", check=False)
    assert (changed.returncode, "occ down" in changed.stderr) == (3, True)


def test_pairing_prints_a_link_alone_on_standard_output(up: tuple[Occ, Any]) -> None:
    occ, _ = up
    printed = occ.command("hub", "pair", "--role", "viewer")
    assert redeemed(printed.stdout)[0] == 200
    unknown = occ.command("hub", "pair", "--owner", "nobody", check=False)
    assert (unknown.returncode, unknown.stdout) == (4, "")


def test_an_agent_that_belongs_to_nobody_is_left_alone(tmp_path: Path) -> None:
    with occ_in(tmp_path, OCC_HUB_HOME=str(tmp_path / "hub")) as occ:
        occ.start()
        refused = occ.command("up", "--port", "0", check=False)
        assert (refused.returncode, "occ stop" in refused.stderr) == (3, True)
        assert json.loads(occ.command("hub", "status", "--json", check=False).stdout)["running"] is False
        assert "keeps running" in occ.command("down").stderr
        assert json.loads(occ.command("status", "--json").stdout)["running"] is True


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (("--lan",), "--tls"),
        (("--lan", "--permissions", "edit"), "--tls"),
        (("--lan", "--tls", "self-signed"), "--permissions"),
        (("--public-url", "http://hub.example.com", "--permissions", "edit"), "https://"),
        (("--public-url", "https://hub.example.com", "--permissions", "edit"), "--trusted-proxy"),
        (("--public-url", "https://hub.example.com", "--trusted-proxy", "127.0.0.1"), "--permissions"),
        (("--lan", "--trusted-proxy", "127.0.0.1", "--permissions", "edit"), "--public-url"),
    ],
)
def test_a_page_that_others_reach_wants_tls_and_a_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], missing: str
) -> None:
    monkeypatch.setenv("OCC_HOME", str(tmp_path / "agent"))
    monkeypatch.setenv("OCC_HUB_HOME", str(tmp_path / "hub"))
    done = CliRunner().invoke(occ_command, ["up", "--port", "0", *arguments])
    assert done.exit_code == 2
    assert missing in done.output
    assert not list(tmp_path.iterdir())


def test_on_a_network_it_prints_a_qr_code_and_the_fingerprint(tmp_path: Path) -> None:
    with occ_in(tmp_path, OCC_HUB_HOME=str(tmp_path / "hub")) as occ:
        try:
            printed = occ.command("up", "--lan", "--tls", "self-signed", "--permissions", "edit", "--port", "0")
            status = json.loads(occ.command("hub", "status", "--json").stdout)
            assert printed.stdout.startswith("https://")
            assert "█▄▄▄█" in printed.stderr
            assert status["tlsFingerprint"] in printed.stderr
            wait_until(lambda: machines(occ) == [("online", "link")], "the machine to have joined")
            occ.command("stop")
            refused = occ.command("up", check=False)  # the hub is still open to others
            assert (refused.returncode, "--permissions" in refused.stderr) == (2, True)
            occ.start()  # standalone, although it registered with this hub before
            refused = occ.command("up", check=False)
            assert (refused.returncode, "occ stop" in refused.stderr) == (3, True)
            assert "keeps running" in occ.command("down").stderr
        finally:
            occ.command("down")
