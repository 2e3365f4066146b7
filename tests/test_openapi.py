"""The live server against its own OpenAPI document: whatever is sent, it answers as the document says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from occ_app.home import state
from tests.conftest import Occ, make_zip
from tests.hub_daemon import Hub, hub_in

EXAMPLES = "60"
# Whether an id exists or a zip is one cannot stand in a document.
UNKNOWABLE = "positive_data_acceptance,missing_required_header,unsupported_method"

KNOWN = '[parameters]\n"path.execution_id" = "known"\n"path.workspace_id" = "work"\n'


@pytest.fixture
def served(occ: Occ) -> Occ:
    occ.start(OCC_MAX_QUEUE="100000")
    occ.workspace()
    occ.run("hello", executionId="known")
    return occ


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with one machine, `box`, on which the execution `known` ran in the workspace `work`."""
    with hub_in(tmp_path, OCC_HUB_MAX_QUEUE="100000") as hub:
        hub.start().agent("box")
        hub.key("spare", "client")
        hub.client.upload("work", make_zip({"README.md": "hello\n"}))
        assert [*hub.client.execute("work", "hello", executionId="known")][-1].name == "complete"
        yield hub


def own_token(hub: Hub) -> str:
    """What opens the hub for its operator: a key would be found in GET /keys and revoked on the way."""
    known = state.load(hub.home / "state.json")
    assert known is not None
    return known.token


def tried(url: str, secret: str, folder: Path, config: str, document: str = "", *more: str) -> int:
    """Try every operation with whatever the document allows and forbids; returns the number of requests.

    `document` is a file with it, for a secret that does not open it.
    """
    (folder / "schemathesis.toml").write_text(config)
    program = Path(sys.executable).with_name("st")
    command = [program, "--config-file", folder / "schemathesis.toml", "run"]
    command += [document, "--url", url, *more] if document else [f"{url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {secret}", "--checks", "all", "--exclude-checks", UNKNOWABLE]
    command += ["--phases", "coverage,fuzzing", "--max-examples", EXAMPLES, "--request-timeout", "20", "--no-color"]
    done = subprocess.run(
        [*command, "--generation-database", "none", "--seed", "1"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    return int(passed.group(2))


def test_every_operation_answers_as_documented_for_ids_of_any_kind(served: Occ, tmp_path: Path) -> None:
    assert tried(served.url, served.token, tmp_path, "") > 300
    assert served.client.health()["status"] == "healthy"


def test_every_operation_answers_as_documented_for_ids_that_exist(served: Occ, tmp_path: Path) -> None:
    assert tried(served.url, served.token, tmp_path, KNOWN) > 300
    assert served.client.health()["status"] == "healthy"


def test_every_operation_of_a_hub_answers_as_documented_for_ids_of_any_kind(hub: Hub, tmp_path: Path) -> None:
    assert tried(hub.url, own_token(hub), tmp_path, "") > 600
    assert hub.request("GET", "/health", token=own_token(hub)).json()["status"] == "healthy"


def test_every_operation_of_a_hub_answers_as_documented_for_ids_that_exist(hub: Hub, tmp_path: Path) -> None:
    config = KNOWN + '"path.agent_id" = "box"\n"path.name" = "spare"\n'
    assert tried(hub.url, own_token(hub), tmp_path, config) > 600
    assert hub.request("GET", "/health", token=own_token(hub)).json()["status"] == "healthy"


def test_what_agents_call_on_a_hub_is_answered_as_documented(hub: Hub, tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    document.write_bytes(hub.request("GET", "/openapi.json").data)
    register = ("--include-path", "/api/agents/register")
    assert tried(hub.url, hub.agent_key, tmp_path, "", str(document), *register) > 50
    known = state.load(hub.home.parent / "box" / "state.json")
    assert known is not None
    config = f'[parameters]\n"path.agent_id" = "{known.agent_id}"\n'
    beat = ("--include-path", "/api/agents/{agent_id}/heartbeat")
    assert tried(hub.url, known.token, tmp_path, config, str(document), *beat) > 50
    assert hub.request("GET", "/health").status == 200
