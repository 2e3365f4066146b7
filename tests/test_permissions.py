"""The calls of a run as OCC answers them to the CLI, line by line, without a CLI."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from occ_app.config import config
from occ_app.database.database import Database
from occ_app.executions import answers, approvals, rules
from occ_app.executions.rules import Rule
from occ_worker.execution.deferral import Deferral
from occ_worker.execution.outcome import Spent
from occ_worker.execution.permissions import Permissions
from occ_worker.execution.resumable import FRESH
from tests.databases import make_database
from tests.test_ownership import accept, on_hub


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Database]:
    make_database(tmp_path / "occ.db")
    with contextlib.closing(Database(tmp_path / "occ.db")) as opened:
        yield opened


class Asking:
    """A run with `permissions`, and the lines that go to its CLI."""

    def __init__(self, database: Database, folder: Path, permissions: str = "ask", **settings: str) -> None:
        on_hub(database, "mine", "")
        self.run = replace(accept(database, "run", "mine", key_id=""), permissions=permissions)
        self.sent = list[dict[str, Any]]()
        self.events = list[Any]()
        known = config.load(
            {"OCC_HOME": str(folder / "home"), "HOME": str(folder), "OCC_PERMISSIONS": "full", **settings}
        )
        known.make_folders()
        context: Any = SimpleNamespace(db=database, config=known)
        deferral = Deferral(context, self.run, FRESH, self._send, lambda _: True, Spent)
        self.permissions = Permissions(context, self.run, deferral, self._send, self.events.extend)

    def _send(self, line: bytes) -> None:
        self.sent.append(json.loads(line)["response"])

    def ask(self, given: Any, tool: str = "Bash") -> None:
        self.raw(json.dumps(given), tool)

    def raw(self, given: str, tool: str = "Bash") -> None:
        """The CLI's question about a call whose input is this JSON."""
        self.permissions.take(
            f'{{"type":"control_request","request_id":"q-{len(self.sent)}","request":{{"subtype":"hook_callback",'
            f'"callback_id":"occ-tool","input":{{"tool_name":"{tool}","tool_use_id":"t","tool_input":{given}}}}}}}'.encode()
        )

    @property
    def decision(self) -> tuple[str, str]:
        """The last answer, and its reason."""
        answer = self.sent[-1]["response"]["hookSpecificOutput"]
        return answer["permissionDecision"], answer.get("permissionDecisionReason", "")


@pytest.mark.parametrize(
    "given",
    [
        '{"command":"ls \\ud800"}',
        '{"command":"ls","timeout":NaN}',
        '{"command":' + "[" * 100_000 + "]" * 100_000 + "}",
        "[",
        '"ls"',
        "null",
    ],
)
def test_a_call_that_cannot_be_read_or_shown_is_denied_at_once(rows: Database, tmp_path: Path, given: str) -> None:
    asking = Asking(rows, tmp_path)
    asking.raw(given)
    if asking.sent:
        assert asking.decision[0] == "deny"
    else:  # a value that is shown whole, for a person to decide
        assert approvals.listing(rows, "open")[0].input == json.loads(given)


def test_an_input_of_a_megabyte_is_denied_and_stored_nowhere(rows: Database, tmp_path: Path) -> None:
    asking = Asking(rows, tmp_path)
    asking.ask({"command": "ls " + "x" * 1_000_000})
    assert "too large" in asking.decision[1]
    assert approvals.listing(rows) == []
    assert asking.events == []


def test_a_model_that_asks_a_thousand_times_is_answered_and_stored_two_hundred_times(
    rows: Database, tmp_path: Path
) -> None:
    asking = Asking(rows, tmp_path)
    for number in range(1000):
        asking.ask({"command": f"ls {number}"})
    assert len(approvals.listing(rows, "open")) == approvals.MOST_ASKED == len(asking.events)
    assert len(asking.sent) == 1000 - approvals.MOST_ASKED
    assert asking.decision[0] == "deny"
    assert "200 times" in asking.decision[1]


def test_rules_that_cannot_be_read_deny(rows: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(rows, tmp_path, "full")
    monkeypatch.setattr(rules, "for_execution", _held)
    asking.ask({"command": "ls"})
    assert asking.decision[0] == "deny"


def _held(*_: Any) -> None:
    from occ_app.errors import Unavailable

    raise Unavailable("BUSY", "The database is held.")


def test_an_answer_meets_the_rules_of_its_delivery(rows: Database, tmp_path: Path) -> None:
    asking = Asking(rows, tmp_path)
    asking.ask({"command": "make"})
    (asked,) = approvals.listing(rows, "open")
    answer = answers.Answer("allow", asked.input_hash, updated_input={"command": "make all"})
    approvals.decide(rows, asked.approval_id, answer, answers.Person("me"))
    with rows.write() as connection:
        rules.add(connection, rules.Place("agent"), Rule("deny", "Bash", "make *"), "me")
    asking.permissions.look()
    assert asking.decision[0] == "deny"
    assert "Bash(make *)" in asking.decision[1]
