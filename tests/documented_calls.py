"""Requests that schemathesis makes of an OpenAPI document, sent to the server that the document is of."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from occ_app.home import state
from tests.conftest import Occ
from tests.real_hub import Hub

EXAMPLES = "30"
only_in_test_all = pytest.mark.skipif(
    not os.environ.get("TEST_ALL"), reason="schemathesis runs in `make test-all`; test_documented_answers.py in both"
)
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
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    return int(passed.group(2))
