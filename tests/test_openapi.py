"""The live server against its own OpenAPI document: whatever is sent, it answers as the document says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from occ_app.home import state
from tests.conftest import Occ, make_zip
from tests.real_hub import Hub, hub_in

EXAMPLES = "60" if os.environ.get("OCC_TEST_ALL") else "20"
# Whether an id exists or a zip is one cannot stand in a document.
UNKNOWABLE = "positive_data_acceptance,missing_required_header,unsupported_method"

ONE_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["id", "event", "data"],
}
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


def secret_of(server: Occ | Hub) -> str:
    return server.token if isinstance(server, Occ) else own_token(server)


def own_token(hub: Hub) -> str:
    """What opens the hub for its operator: a key would be found in GET /keys and revoked on the way."""
    known = state.load(hub.home / "state.json")
    assert known is not None
    return known.token


def document_of(server: Occ | Hub, folder: Path) -> Path:
    """Write the server's document to a file, with a stream described by one event of it.

    A generated client reads a stream as text, and the document says so; schemathesis checks each event by itself.
    """
    document = server.request("GET", "/openapi.json", Authorization=f"Bearer {secret_of(server)}").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation["responses"].get("200", {}).get("content", {})
            if "text/event-stream" in content:
                assert content["text/event-stream"]["schema"]["type"] == "string"
                content["text/event-stream"]["schema"] = ONE_EVENT
    path = folder / "openapi.json"
    path.write_text(json.dumps(document))
    return path


def tried(url: str, secret: str, folder: Path, config: str, document: Path, *more: str) -> int:
    """Try every operation with whatever the document allows and forbids; returns the number of requests."""
    (folder / "schemathesis.toml").write_text(config)
    program = Path(sys.executable).with_name("st")
    command = [program, "--config-file", folder / "schemathesis.toml", "run"]
    command += [document, "--url", url, *more]
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
    assert tried(served.url, served.token, tmp_path, "", document_of(served, tmp_path)) > 300
    assert served.client.health()["status"] == "healthy"


def test_every_operation_answers_as_documented_for_ids_that_exist(served: Occ, tmp_path: Path) -> None:
    assert tried(served.url, served.token, tmp_path, KNOWN, document_of(served, tmp_path)) > 300
    assert served.client.health()["status"] == "healthy"


def test_every_operation_of_a_hub_answers_as_documented_for_ids_of_any_kind(hub: Hub, tmp_path: Path) -> None:
    assert tried(hub.url, own_token(hub), tmp_path, spared(hub), document_of(hub, tmp_path)) > 600
    health = hub.request("GET", "/health", token=own_token(hub)).json()
    assert health["status"] == "healthy", health["problems"]


def test_every_operation_of_a_hub_answers_as_documented_for_ids_that_exist(hub: Hub, tmp_path: Path) -> None:
    config = KNOWN + '"path.agent_id" = "box"\n"path.name" = "spare"\n' + spared(hub)
    assert tried(hub.url, own_token(hub), tmp_path, config, document_of(hub, tmp_path)) > 600
    health = hub.request("GET", "/health", token=own_token(hub)).json()
    assert health["status"] == "healthy", health["problems"]


def spared(hub: Hub) -> str:
    """Keep the machine that has the workspace, and its key: without them the archive is rightly 503."""
    hub.agent("other")
    operations = (
        ("DELETE", "/agents/{agent_id}", "agent_id", "other"),
        ("POST", "/keys/{name}/revoke", "name", "spare"),
        ("POST", "/keys/{name}/rotate", "name", "spare"),
    )
    return "".join(
        f'[[operations]]\ninclude-method = "{method}"\ninclude-path = "{path}"\n'
        f'parameters = {{ "path.{name}" = "{value}" }}\n'
        for method, path, name, value in operations
    )


def test_what_agents_call_on_a_hub_is_answered_as_documented(hub: Hub, tmp_path: Path) -> None:
    document = document_of(hub, tmp_path)
    register = ("--include-path", "/api/agents/register")
    assert tried(hub.url, hub.agent_key, tmp_path, "", document, *register) > 50
    known = state.load(hub.home.parent / "box" / "state.json")
    assert known is not None
    config = f'[parameters]\n"path.agent_id" = "{known.agent_id}"\n'
    beat = ("--include-path", "/api/agents/{agent_id}/heartbeat")
    assert tried(hub.url, known.token, tmp_path, config, document, *beat) > 50
    assert hub.request("GET", "/health").status == 200
