"""The live server against its own OpenAPI document: whatever is sent, it answers as the document says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Occ

EXAMPLES = "60"
# Whether an id exists or a zip is one cannot stand in a document.
UNKNOWABLE = "positive_data_acceptance,missing_required_header,unsupported_method"


@pytest.fixture
def served(occ: Occ) -> Occ:
    occ.start(OCC_MAX_QUEUE="100000")
    occ.workspace()
    occ.run("hello", executionId="known")
    return occ


def tried(occ: Occ, folder: Path, config: str) -> int:
    """Try every operation with whatever the document allows and forbids; returns the number of requests."""
    (folder / "schemathesis.toml").write_text(config)
    program = Path(sys.executable).with_name("st")
    command = [program, "--config-file", folder / "schemathesis.toml", "run", f"{occ.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {occ.token}", "--checks", "all", "--exclude-checks", UNKNOWABLE]
    command += ["--phases", "coverage,fuzzing", "--max-examples", EXAMPLES, "--request-timeout", "20", "--no-color"]
    done = subprocess.run(
        [*command, "--generation-database", "none", "--seed", "1"],
        cwd=folder,
        env=occ.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert occ.client.health()["status"] == "healthy"
    return int(passed.group(2))


def test_every_operation_answers_as_documented_for_ids_of_any_kind(served: Occ, tmp_path: Path) -> None:
    assert tried(served, tmp_path, "") > 300


def test_every_operation_answers_as_documented_for_ids_that_exist(served: Occ, tmp_path: Path) -> None:
    config = '[parameters]\n"path.execution_id" = "known"\n"path.workspace_id" = "work"\n'
    assert tried(served, tmp_path, config) > 300
