"""A client that openapi-python-client generates from the documents can call every operation, streams included."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import real_cli
from tests.conftest import Occ, make_zip
from tests.documented_calls import own_token, secret_of
from tests.real_hub import Hub
from tests.test_hub_openapi import hub  # noqa: F401 - a fixture
from tests.test_openapi import served  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(
    not os.environ.get("TEST_ALL"), reason="the generated client is tested by `make test-all`"
)

GENERATOR = "openapi-python-client==0.29.1"
# The generator knows no zips; docs/api.md says the same.
CONFIG = "post_hooks: []\ncontent_type_overrides:\n  application/zip: application/octet-stream\n"
PROGRAM = Path(__file__).with_name("generated_calls.py")
SECONDS = 300


@pytest.fixture(scope="module")
def generator() -> Path:
    """The folder of an environment with the generator, which is kept between test runs."""
    cache = real_cli.default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / GENERATOR.replace("==", "-")
    with (cache / "generator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True, timeout=SECONDS)
            done = subprocess.run(
                [home / "bin/python", "-m", "pip", "install", "--quiet", GENERATOR],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            if done.returncode != 0:
                pytest.skip(f"THE GENERATED CLIENT IS NOT TESTED: {done.stderr[-500:]}")
            (home / "complete").touch()
    return home / "bin"


def generated(server: Occ | Hub, generator: Path, folder: Path) -> set[str]:
    """Generate the client in a folder; returns the names of the operations in the document."""
    document = server.request("GET", "/openapi.json", Authorization=f"Bearer {secret_of(server)}").json()
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "config.yml").write_text(CONFIG)
    done = subprocess.run(
        [
            *(generator / "openapi-python-client", "generate", "--path", "openapi.json", "--output-path", "generated"),
            *("--meta", "none", "--config", "config.yml", "--fail-on-warning"),
        ],
        cwd=folder,
        env={"PATH": f"{generator}:{os.defpath}", "HOME": str(folder), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    operations = (operation for path in document["paths"].values() for operation in path.values())
    return {operation["operationId"].replace(".", "_") for operation in operations}


def called(url: str, token: str, generator: Path, folder: Path, **given: Any) -> Mapping[str, Any]:
    """Call every operation of the generated client; returns the status and the parsed reply of each."""
    (folder / "a.zip").write_bytes(make_zip({"README.md": "hello\n", "src/a.py": "x = 1\n"}).getvalue())
    schemas = json.loads((folder / "openapi.json").read_text())["components"]["schemas"]
    done = subprocess.run(
        [generator / "python", PROGRAM, folder],
        input=json.dumps({"url": url, "token": token, "zip": str(folder / "a.zip"), "schemas": schemas, **given}),
        env={"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


VALUES = {"execution_id": "known", "workspace_id": "work", "path": "README.md", "q": "hello"}
BODIES = {
    "executions_execute": {"executionId": "generated", "workspaceId": "work", "prompt": "hello"},
    "workspaces_init": {"workspace_id": "new", "name": "new", "processPolicy": "overwrite"},
}


def refused(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the refusals of calls with ids that exist; any call is answered as the document says."""
    assert [name for name, reply in found.items() if reply["status"] >= 500] == []
    return {name: reply["parsed"] for name, reply in found.items() if reply["status"] >= 300 and not reply["made_up"]}


def test_an_agents_operations_can_all_be_called(served: Occ, generator: Path, tmp_path: Path) -> None:  # noqa: F811
    operations = generated(served, generator, tmp_path)
    values = {"*": VALUES, "workspaces_delete": {"workspace_id": "new"}}
    last = ["workspaces_delete"]
    found = called(served.url, served.token, generator, tmp_path, values=values, bodies=BODIES, last=last)
    assert found.keys() == operations
    assert refused(found).keys() == {"proof_show"}  # it takes no token
    assert found["executions_events"]["parsed"].count("event: complete") == 1
    assert found["executions_execute"]["parsed"].count("event: complete") == 1
    assert found["workspaces_archive"]["parsed"] == "File"


def test_a_hubs_operations_can_all_be_called(hub: Hub, generator: Path, tmp_path: Path) -> None:  # noqa: F811
    operations = generated(hub, generator, tmp_path)
    hub.agent("other")
    values = {"*": VALUES | {"agent_id": "box", "name": "spare"}, "workspaces_delete": {"workspace_id": "new"}}
    values["hub_remove"] = values["hub_drain"] = values["hub_resume"] = {"agent_id": "other"}
    bodies = BODIES | {"hub_create_key": {"name": "made", "for": "client"}, "hub_rotate_key": {}}
    bodies["hub_register"] = {"protocol": 1, "name": "x", "version": "1", "port": 9, "workers": 1}
    bodies["hub_heartbeat"] = {"seqNum": 1, "status": "healthy", "version": "1"}
    last = ["hub_drain", "hub_resume", "hub_remove", "hub_rotate_key", "hub_revoke_key", "workspaces_delete"]
    found = called(hub.url, own_token(hub), generator, tmp_path, values=values, bodies=bodies, last=last)
    assert found.keys() == operations
    # The operator's token is no agent's key or token: these answer as the document says.
    codes = {name: text.partition(":")[0] for name, text in refused(found).items() if "CHANGES_NOT_FOUND" not in text}
    assert codes == dict.fromkeys(("hub_register", "hub_heartbeat", "hub_challenge"), "UNAUTHORIZED"), refused(found)
    assert found["executions_events"]["parsed"].count("event: complete") == 1
    assert found["executions_execute"]["parsed"].count("event: complete") == 1
