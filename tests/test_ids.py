"""Ids as people give them, and the tables that show them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from occ_app import errors
from occ_app.cli import ids, job_table, output, tables
from occ_app.cli.commands import occ
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.executions import lifecycle
from occ_app.executions.records import Request
from occ_app.system.foreign_text import visible_line
from occ_app.system.short_ids import new_execution_id
from occ_app.system.timestamps import iso_now
from tests import sentences
from tests.conftest import Occ, make_zip, shared_agent
from tests.databases import make_database
from tests.hub_app import HubApp, hub_app


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The home of an agent that never started, which the commands of this test use."""
    for name, value in (("HOME", tmp_path), ("OCC_HOME", tmp_path / "occ"), ("OCC_HUB_HOME", tmp_path / "hub")):
        monkeypatch.setenv(name, str(value))
    for name in ("OCC_URL", "OCC_TOKEN", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    found = configuration.load()
    found.make_folders()
    make_database(found.database)
    return found


@pytest.fixture
def rows(config: Config) -> Iterator[Database]:
    rows = Database(config.database)
    yield rows
    rows.close()


def accept(rows: Database, *execution_ids: str, agent_id: str | None = None) -> None:
    with rows.write() as connection:
        connection.execute(
            "INSERT OR IGNORE INTO workspaces (workspace_id, name, description, path, files, bytes, skipped,"
            " created_at, updated_at) VALUES ('w', 'w', '', '', 0, 0, '[]', :now, :now)",
            {"now": iso_now()},
        )
    for execution_id in execution_ids:
        request = Request(execution_id, "w", f"do {execution_id}", 9, 9, None, None, None, None, "")
        lifecycle.create(rows, request, max_queue=100)
    if agent_id is not None:
        with rows.write() as connection:
            connection.execute("UPDATE executions SET agent_id = :agent_id", {"agent_id": agent_id})


def command(*arguments: str) -> Result:
    return CliRunner().invoke(occ, arguments)


def test_new_executions_have_short_ids() -> None:
    found = {new_execution_id() for _ in range(1000)}
    assert len(found) == 1000
    assert all(re.fullmatch(r"run-[a-z2-7]{10}", execution_id) for execution_id in found)


def test_any_beginning_that_only_one_id_has_names_it_and_a_whole_id_wins(rows: Database) -> None:
    accept(rows, "run-abc", "run-abd", "run-abc2", "other", "Run-x")
    source = ids.StoredExecutions(rows)
    for given, meant in (("run-abd", "run-abd"), ("run-abc", "run-abc"), ("run-abc2", "run-abc2"), ("o", "other")):
        assert ids.execution_id(source, given, last=False) == meant
    assert ids.execution_id(source, "R", last=False) == "Run-x"
    assert ids.execution_id(source, None, last=True) == "Run-x"
    with pytest.raises(errors.NotFound, match=r"run-abd.*run-abc|run-abc.*run-abd"):
        ids.execution_id(source, "run-ab", last=False)
    for unknown in ("nothing", "%", "run_", "", "x" * 200, "-", "*"):
        with pytest.raises(errors.NotFound):
            ids.execution_id(source, unknown, last=False)
    for given, last in ((None, False), ("run-abc", True)):
        with pytest.raises(click.UsageError):
            ids.execution_id(source, given, last=last)


def test_an_ambiguous_beginning_names_some_of_its_ids(rows: Database) -> None:
    accept(rows, *(f"run-{number:02}" for number in range(20)))
    with pytest.raises(errors.NotFound) as told:
        ids.execution_id(ids.StoredExecutions(rows), "run", last=False)
    assert str(told.value).count("run-") == 5
    assert "…" in str(told.value)


def test_without_executions_there_is_no_last_one(rows: Database) -> None:
    with pytest.raises(errors.NotFound, match="no executions"):
        ids.execution_id(ids.StoredExecutions(rows), None, last=True)


def test_the_commands_take_beginnings_and_the_last_one(rows: Database) -> None:
    accept(rows, "run-aaa", "run-bbb")
    assert json.loads(command("jobs", "show", "run-a", "--json").stdout)["executionId"] == "run-aaa"
    assert json.loads(command("jobs", "show", "--last", "--json").stdout)["executionId"] == "run-bbb"
    assert command("jobs", "tail", "run-a").exit_code == 0
    assert isinstance(command("jobs", "show", "run-").exception, errors.NotFound)
    assert command("jobs", "show").exit_code == 2


def test_jobs_list_is_jobs(rows: Database) -> None:
    accept(rows, "run-aaa")
    for arguments in (["jobs"], ["jobs", "list"], ["jobs", "list", "--state", "queued"]):
        assert "run-aaa" in command(*arguments).stdout
    assert json.loads(command("jobs", "list", "--json").stdout)["executions"][0]["executionId"] == "run-aaa"
    assert command("jobs", "list", "--state", "failed").stdout == f"{sentences.NO_EXECUTIONS_LIKE_THAT}\n"
    for option in (["--state", "failed"], ["--limit", "3"], ["--json"], ["--url", "http://x"]):
        refused = command("jobs", *option, "list")
        assert (refused.exit_code, f"{option[0]} after list" in refused.output) == (2, True)


def test_a_list_of_a_hub_shows_the_machines(rows: Database, config: Config, tmp_path: Path) -> None:
    assert "MACHINE" not in command("jobs").output
    with hub_app(tmp_path) as hub:
        box = hub.register(hub.key("machines", "agent"), "box").json
        assert box is not None
        accept(hub.database, "run-aaa", agent_id=box["agentId"])
        accept(hub.database, "run-bbb")
        head, *listed = command("jobs", "--hub").stdout.splitlines()
        assert head.split()[:4] == ["ID", "STATE", "WORKSPACE", "MACHINE"]
        assert [line.split("  ")[0] for line in listed] == ["run-bbb", "run-aaa"]
        assert " box " in listed[1]
        assert " box " not in listed[0]


def test_the_api_finds_executions_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        accept(hub.database, "run-aaa", "run-aab", "run-b")
        assert listed(hub, "idPrefix=run-a") == ["run-aab", "run-aaa"]
        assert listed(hub, "idPrefix=run-a&limit=1") == ["run-aab"]
        assert listed(hub, "idPrefix=run-c") == []
        for wrong in ("", "%25", "-x", "a" * 129):
            assert hub.call("GET", f"/executions?idPrefix={wrong}").status_code == 422
        key = hub.key("ann", "client")
        assert hub.call("GET", "/executions?idPrefix=run", key).json == {"executions": [], "next": None}
        assert hub.call("GET", "/executions/run-b").status_code == 200
        assert hub.call("GET", "/executions/run-aa").status_code == 404  # whole ids in paths


def test_a_workspace_is_named_by_its_id_its_alias_or_a_beginning() -> None:
    records = [
        {"workspaceId": "app-1f2e", "alias": "app@box"},
        {"workspaceId": "app-9a8b", "alias": "app@other"},
        {"workspaceId": "work", "alias": None},
        {"workspaceId": "work-2", "alias": None},
    ]
    for given, meant in (
        *(("work", "work"), ("work-", "work-2"), ("app-1", "app-1f2e"), ("app@b", "app-1f2e")),
        *(("app@other", "app-9a8b"), ("removed", "removed")),
    ):
        assert ids.workspace_filter(records, given) == meant
    for several in ("app", "wor"):
        with pytest.raises(errors.NotFound, match="several"):
            ids.workspace_filter(records, several)


def test_a_list_is_narrowed_by_the_beginning_of_a_workspace(rows: Database) -> None:
    accept(rows, "run-aaa")
    with rows.write() as connection:
        connection.execute("UPDATE workspaces SET workspace_id = 'work-1'")
        connection.execute("UPDATE executions SET workspace_id = 'work-1'")
    assert "run-aaa" in command("jobs", "--workspace", "work").stdout
    assert command("jobs", "--workspace", "other").stdout == f"{sentences.NO_EXECUTIONS_LIKE_THAT}\n"


def listed(hub: HubApp, query: str) -> list[str]:
    page = hub.call("GET", f"/executions?{query}").json
    assert page is not None
    return [each["executionId"] for each in page["executions"]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    with shared_agent(tmp_path_factory.mktemp("agent")) as occ:
        occ.workspace("work-one")
        occ.workspace("work-two")
        occ.workspace("work")
        yield occ


def test_beginnings_are_resolved_for_an_agent_that_answers(running: Occ, tmp_path: Path) -> None:
    done = running.command("run", "--workspace", "work-o", "hello")
    first = re.findall(r"run-[a-z2-7]{10}", done.stderr)[0]
    assert "--workspace work-one" in done.stderr
    reach = ("--url", running.url, "--token", running.token)
    for arguments in (["show", first[:8]], ["show", "--last"], ["tail", first[:8]], ["cancel", first[:8]]):
        assert running.command("jobs", *arguments, *reach).returncode == 0
    assert first in running.command("jobs", "cancel", "--last").stdout
    assert running.command("jobs", "show", "run-0", *reach, check=False).returncode == 4
    refused = running.command("workspaces", "fetch", "work-", check=False)
    assert (refused.returncode, "work-one, work-two" in refused.stderr) == (4, True)
    running.client.upload("gone-soon", make_zip({"a": "a"}))
    assert "gone-soon is removed" in running.command("workspaces", "remove", "gone").stdout
    running.command("workspaces", "fetch", "work-t", str(tmp_path / "two.zip"))
    assert (tmp_path / "two.zip").exists()


HEAD = ("ID", "STATE", "WORKSPACE", "PROMPT")
WIDE = [
    HEAD,
    ("run-abcdefghij", "failed (EXECUTION_TIMEOUT)", "a-workspace-with-a-long-name", "Write all of it. " * 9),
    ("run-kl", "succeeded", "w", "読む" * 40),
    ("run-mn", "queued (waits for an agent)", "w", "e\u0301" * 100),
]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 400])
def test_a_table_is_no_wider_than_the_terminal(width: int) -> None:
    lines = tables.lines(WIDE, width)
    assert all(tables._width(line) <= width for line in lines)
    assert len(lines) == len(WIDE)
    if width >= 60:
        assert [line.split()[0] for line in lines[1:]] == ["run-abcdefghij", "run-kl", "run-mn"]
    if width == 400:
        assert "…" not in "".join(lines)


def test_without_a_terminal_nothing_is_cut() -> None:
    assert "…" not in "".join(tables.lines(WIDE, None))


def test_a_table_without_room_leaves_empty_columns_out_first() -> None:
    rows = [("ID", "LABELS", "STATE", "VERSIONS"), ("agent-1", "", "online", "0.2.0"), ("agent-2", "", "", "0.2.0")]
    assert tables.lines(rows, 40, 2)[0].split() == list(rows[0])
    narrow = tables.lines(rows, 28, 2)
    assert [line.split()[0] for line in narrow] == ["ID", "agent-1", "agent-2"]
    assert narrow[0].split() == ["ID", "STATE", "VERSIONS"]
    assert tables.coloured("online") in narrow[1]


def test_states_have_a_colour_and_their_columns_stay_aligned() -> None:
    plain, coloured = tables.lines(WIDE, 100), tables.lines(WIDE, 100, 1)
    assert [click.unstyle(line) for line in coloured] == plain
    assert coloured[0] == plain[0]
    assert "\x1b[31mfailed" in coloured[1]
    assert "\x1b[32msucceeded" in coloured[2]


def test_a_table_of_the_commands_is_fitted_and_coloured_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record: dict[str, Any] = dict.fromkeys(("waitsFor", "errorCode", "position", "finishedAt", "startedAt", "costUsd"))
    record |= {"executionId": "run-a", "state": "succeeded", "workspaceId": "w" * 60, "prompt": "\x1b[2Jx" * 30}
    record |= {"createdAt": iso_now()}
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.delenv("NO_COLOR", raising=False)
    job_table.show([record], lambda _: {})
    assert "w" * 60 in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    job_table.show([record], lambda _: {})
    shown = capsys.readouterr().out
    assert max(map(len, click.unstyle(shown).splitlines())) <= 70
    assert "\x1b[2J" not in shown
    monkeypatch.setenv("NO_COLOR", "1")
    output.table([("STATE",), ("failed",)], state=0)
    assert "\x1b" not in capsys.readouterr().out
    assert visible_line("failed") == "failed"
