"""The live agent against its own OpenAPI document: whatever is sent, it answers as the document says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Occ
from tests.documented_calls import KNOWN, document_of, only_in_test_all, tried

pytestmark = only_in_test_all


@pytest.fixture
def served(occ: Occ) -> Occ:
    occ.start(OCC_MAX_QUEUE="100000")
    occ.workspace()
    occ.run("hello", executionId="known")
    return occ


def test_every_operation_answers_as_documented_for_ids_of_any_kind(served: Occ, tmp_path: Path) -> None:
    assert tried(served.url, served.token, tmp_path, "", document_of(served, tmp_path)) > 300
    assert served.client.health()["status"] == "healthy"


def test_every_operation_answers_as_documented_for_ids_that_exist(served: Occ, tmp_path: Path) -> None:
    assert tried(served.url, served.token, tmp_path, KNOWN, document_of(served, tmp_path)) > 300
    assert served.client.health()["status"] == "healthy"
