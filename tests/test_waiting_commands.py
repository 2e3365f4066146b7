"""The commands on runs that wait, and where `occ chat` runs, against applications in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from flask import Flask

from occ_app import errors, wsgi
from occ_app.cli import chat, output, remote, remotes, run_target
from occ_app.cli.commands import occ
from occ_app.config import config
from occ_app.database.database import Database
from occ_app.executions import conversations, queries
from tests import sentences
from tests.hub_app import hub_app
from tests.test_approval_commands import AppClient
from tests.test_contracts import served
from tests.test_conversations import SESSION, accept, run
from tests.test_ownership import on_hub


class Client(AppClient):
    """A client's calls on executions, too."""

    def execution(self, execution_id: str) -> Any:
        return self.call("GET", f"/executions/{execution_id}")

    def executions(self, **query: Any) -> Any:
        return self.call("GET", "/executions?" + "&".join(f"{name}={value}" for name, value in query.items()))


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    """A conversation `first` with the follow-ups `turn-a`, `turn-b` and `turn-c` that wait."""
    for app in served(config.load({"OCC_HOME": str(tmp_path / "agent"), "HOME": str(tmp_path)}), wsgi.make_app):
        monkeypatch.setattr(remote, "chosen", lambda *_, app=app, **__: Client(app))
        on_hub(app.extensions["occ"].db, "alpha", "")
        accept(app.extensions["occ"].db, "first", "alpha")
        run(app.extensions["occ"].db, SESSION)
        for name, former in (("turn-a", "first"), ("turn-b", "turn-a"), ("turn-c", "turn-b")):
            accept(app.extensions["occ"].db, name, continues=former)
        yield app


@pytest.fixture
def rows(agent: Flask) -> Database:
    found: Database = agent.extensions["occ"].db
    return found


def command(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(occ, ["jobs", *arguments], input=text)


def prompt(rows: Database, execution_id: str = "turn-a") -> str | None:
    return queries.get(rows, execution_id).prompt


def paused(rows: Database) -> list[str | None]:
    return [turn.paused for turn in conversations.get(rows, "first")[1][1:]]


def test_the_prompt_of_a_run_that_waits_is_edited(rows: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("edit", "turn-a", "--prompt", "another").exit_code == 0
    assert prompt(rows) == "another"
    assert command("edit", "turn-a", "--prompt", "-", text="from a pipe").exit_code == 0
    assert prompt(rows) == "from a pipe"
    for refused in (command("edit", "turn-a"), command("edit", "turn-a", "--prompt", " ")):
        assert refused.exit_code == 2  # no terminal, and no text
    monkeypatch.setattr(output, "interactive", lambda: True)
    for written in (None, "from a pipe\n", "from an editor\n"):
        monkeypatch.setattr(click, "edit", lambda _, written=written, **__: written)
        assert command("edit", "turn-a").exit_code == 0
        assert prompt(rows) == ("from an editor\n" if written == "from an editor\n" else "from a pipe")
    begun = command("edit", "first", "--prompt", "late")
    assert isinstance(begun.exception, errors.Refused)
    assert begun.exception.code == "EXECUTION_STARTED"


def test_follow_ups_are_moved_paused_and_resumed(rows: Database) -> None:
    order = lambda: [turn.execution_id for turn in conversations.get(rows, "first")[1][1:]]  # noqa: E731
    assert command("move", "turn-c", "--before", "turn-a").exit_code == 0
    assert order() == ["turn-c", "turn-a", "turn-b"]
    assert command("move", "turn-c", "--to-end").exit_code == 0
    assert order() == ["turn-a", "turn-b", "turn-c"]
    for wrong in ((), ("--to-end", "--before", "turn-a")):
        assert command("move", "turn-c", *wrong).exit_code == 2
    for execution_id in ("turn-a", "turn-b"):
        assert command("pause", execution_id).exit_code == 0
    assert paused(rows) == ["person", "person", None]
    assert command("resume", "turn-a").exit_code == 0
    assert paused(rows) == [None, "person", None]
    assert command("resume", "first", "--all").exit_code == 0
    assert paused(rows) == [None, None, None]


# -- where a chat runs


def test_a_chat_runs_on_the_machine_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = list[Any]()

    class Recorded:
        last = None

        def __init__(self, *given: Any) -> None:
            begun.append(given)

        def run(self) -> None: ...

    asked = list[Any]()
    monkeypatch.setattr(chat, "Chat", Recorded)
    monkeypatch.setattr(run_target, "existing", lambda *_: "work")
    monkeypatch.setattr(remote, "place_name", lambda *_: "here")
    words = ("chat", "--workspace", "work", "--agent", "box", "--label", "gpu", "--label", "big")
    with hub_app(tmp_path / "hub") as hub:
        monkeypatch.setattr(remote, "chosen", lambda url, *_: asked.append(url) or Client(hub.app))
        assert CliRunner().invoke(occ, [*words, "--hub"]).exit_code == 0
    assert asked == [remotes.LOCAL_HUB]
    assert begun[0][-1] == {"agent": "box", "labels": ["gpu", "big"]}
    for app in served(config.load({"OCC_HOME": str(tmp_path / "agent"), "HOME": str(tmp_path)}), wsgi.make_app):
        monkeypatch.setattr(remote, "chosen", lambda *_, app=app: Client(app))
        refused = CliRunner().invoke(occ, words)
        assert (refused.exit_code, sentences.ARE_FOR_A_HUB in refused.output) == (2, True)
    assert len(begun) == 1
