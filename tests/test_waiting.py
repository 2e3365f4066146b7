"""The line of executions that wait: each counts those that could start before it, and says what it waits for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from occ_app.cli import job_table
from occ_app.database.database import Database
from occ_app.executions import events, follow_ups, lifecycle, queries, waiting
from occ_app.executions.records import Execution, Outcome, Request
from occ_app.hub import keys, placement, registrations
from occ_app.hub.agents import Agents
from occ_app.system.compact_json import object_of
from occ_app.system.process_identity import own_identity
from tests import sentences
from tests.databases import make_database
from tests.test_ownership import on_hub


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Database]:
    make_database(tmp_path / "occ.db")
    rows = Database(tmp_path / "occ.db")
    yield rows
    rows.close()


def accept(rows: Database, execution_id: str, workspace_id: str, workers: int = 1, **places: object) -> Execution:
    """Accept an execution as an agent with so many workers does."""
    request = Request(execution_id, workspace_id, "x", 600, 9, None, None, None, None, "", **places)  # type: ignore[arg-type]
    return lifecycle.create(
        rows,
        request,
        max_queue=100,
        admit=lambda connection, _: lifecycle.Admission(free_workers=workers - queries.running_count(connection)),
    )[0]


def begin(rows: Database) -> Execution:
    begun = lifecycle.claim(rows, own_identity())
    assert begun is not None
    return begun


def ahead(rows: Database, execution_id: str) -> int | None:
    return queries.get(rows, execution_id).position


def reason(rows: Database, execution_id: str) -> str:
    return queries.get(rows, execution_id).waits_for or ""


@pytest.fixture
def three(rows: Database) -> Database:
    for workspace_id in ("a", "b", "c"):
        on_hub(rows, workspace_id, "")
    return rows


def test_with_one_worker_all_that_came_before_are_ahead(three: Database) -> None:
    accept(three, "a1", "a")
    begin(three)
    assert [accept(three, name, name[0]).position for name in ("a2", "b1", "a3", "c1")] == [0, 1, 2, 3]
    assert [ahead(three, name) for name in ("a2", "b1", "a3", "c1")] == [0, 1, 2, 3]
    assert re.fullmatch(
        rf"execution a1, {sentences.WHICH_RUNS_IN_ITS_WORKSPACE} \({sentences.ITS_TIME_LIMIT_ENDS_IT_IN} \d+ min\)",
        reason(three, "a2"),
    )
    assert reason(three, "a3") == f"execution a2, {sentences.WHICH_COMES_BEFORE_IT}"
    assert reason(three, "b1") == sentences.A_WORKER_TO_BE_FREE


def test_with_a_free_worker_nothing_is_ahead_that_waits_for_its_own_workspace(three: Database) -> None:
    accept(three, "a1", "a", workers=3)
    begin(three)
    accept(three, "a2", "a", workers=3)
    accept(three, "a3", "a", workers=3)
    told = accept(three, "b1", "b", workers=3)
    assert told.position == 0
    queued = events.after(three, told.number, 0)[0]
    assert object_of(queued.data)["position"] == 0
    begin(three)
    # Of its own workspace one runs: the others of workspace a take no worker from it.
    assert accept(three, "b2", "b", workers=3).position == 0
    assert accept(three, "b3", "b", workers=3).position == 1
    # Two workers are free or none: c1 could start, and what could start before it takes the last worker.
    assert accept(three, "c1", "c", workers=3).position == 0
    assert accept(three, "c2", "c", workers=2).position == 1 + 4


def test_what_waits_in_an_idle_workspace_is_ahead_of_one_that_waits_for_its_own(three: Database) -> None:
    accept(three, "a1", "a")
    begin(three)
    accept(three, "b1", "b")  # waits for the only worker
    assert accept(three, "a2", "a").position == 1
    lifecycle.finish(three, queries.get(three, "a1").number, Outcome.failure("CLAUDE_EXIT", "x"))
    assert ahead(three, "a2") == 1
    assert begin(three).execution_id == "b1"
    assert ahead(three, "a2") == 0
    assert queries.get(three, "b1").position is None


def machine(rows: Database, agents: Agents, name: str, *labels: str, ceiling: str | None = None) -> str:
    """Register a machine with one worker, heard just now; return its id. Without a ceiling it is of an older OCC."""
    key, _ = keys.create(rows, f"key of {name}", "agent")
    said = {"agent_id": None, "name": name, "url": None, "port": 1, "direct": False, "tls_fingerprint": None}
    said |= {
        "workers": 1,
        "labels": list(labels),
        "version": "9",
        "platform": "x",
        "claude_version": None,
        "machine": None,
        "capabilities": [] if ceiling is None else ["permissions"],
        "permissions": ceiling,
    }
    return registrations.register(agents, key, "127.0.0.1", said).agent_id


@pytest.fixture
def hub(rows: Database) -> Agents:
    """The rows of a hub with machines box and rig; workspace a lives on box, workspace b on rig, c and d on neither."""
    agents = Agents(rows, 60)
    homes = {"a": machine(rows, agents, "box"), "b": machine(rows, agents, "rig", "gpu"), "c": None, "d": None}
    for workspace_id, home in homes.items():
        on_hub(rows, workspace_id, "")
        with rows.write() as connection:
            connection.execute(
                "UPDATE workspaces SET agent_id = :home WHERE workspace_id = :id", {"home": home, "id": workspace_id}
            )
    return agents


def on(agents: Agents, execution_id: str, workspace_id: str, **places: object) -> Execution:
    request = Request(execution_id, workspace_id, "x", 600, 9, None, None, None, None, "", **places)  # type: ignore[arg-type]
    admit = lambda connection, request: placement.admit(agents, connection, request, None)  # noqa: E731
    return lifecycle.create(agents.db, request, max_queue=100, admit=admit)[0]


def place_all(agents: Agents) -> list[str]:
    """Place what can be placed, as the hub's relays do; return the ids."""
    placed = list[str]()
    while (execution := placement.claim(agents.db, agents, own_identity())) is not None:
        placed.append(execution.execution_id)
    return placed


def test_on_a_hub_only_what_needs_the_same_machine_is_ahead(hub: Agents) -> None:
    assert [on(hub, name, name[0]).position for name in ("a1", "b1", "a2", "b2")] == [0, 0, 1, 1]
    assert place_all(hub) == ["a1", "b1"]
    assert on(hub, "c1", "c", labels=("gpu",)).position == 1  # b2, which is on the machine with this label
    assert on(hub, "d1", "d").position == 3  # a2, b2, c1: any machine will do
    place_all(hub)
    assert reason(hub.db, "c1") == f"{sentences.AN_AGENT_WITH_THE_LABELS} gpu {sentences.TO_HAVE_A_FREE_WORKER}"
    assert reason(hub.db, "d1") == f"an agent {sentences.TO_HAVE_A_FREE_WORKER}"
    assert (
        reason(hub.db, "a2") == f"execution a1, {sentences.WHICH_RUNS_IN_ITS_WORKSPACE}"
    )  # its machine counts the limit
    assert ahead(hub.db, "c1") == 1
    on(hub, "a3", "a", key_id="client")
    assert reason(hub.db, "a3") == f"another execution, {sentences.WHICH_COMES_BEFORE_IT}"


def test_on_a_hub_what_waits_for_a_machine_that_is_away_is_ahead_of_nothing_else(hub: Agents) -> None:
    with hub.db.write() as connection:
        connection.execute("UPDATE agents SET heard_boot_id = 'earlier' WHERE name = 'box'")
    for number in range(3):
        on(hub, f"a{number}", "a")
    on(hub, "b1", "b")
    assert place_all(hub) == ["b1"]
    assert reason(hub.db, "a0") == f"agent box, {sentences.WHERE_ITS_WORKSPACE_IS} {sentences.TO_BE_ONLINE}"
    assert on(hub, "d1", "d").position == 0
    assert on(hub, "a3", "a").position == 4  # d1, too, may run on box when it is back
    assert place_all(hub) == []
    assert [ahead(hub.db, name) for name in ("d1", "a3")] == [0, 4]


def test_a_list_shows_what_is_waited_for_and_how_many_are_ahead(three: Database) -> None:
    accept(three, "a1", "a")
    begin(three)
    accept(three, "b1", "b")
    accept(three, "a2", "a")
    found, _ = queries.listing(three)
    assert [job_table._state(job_table.record_of(execution)) for execution in found] == [
        "queued (waits for execution a1, 1 ahead)",
        f"queued (waits for {sentences.A_WORKER_TO_BE_FREE})",
        "running",
    ]


def test_one_that_begins_while_it_is_read_is_next_and_waits_for_nothing(three: Database) -> None:
    accept(three, "a1", "a")
    with three.read() as connection:
        read_before = queries.one(connection, "x.execution_id = ?", ("a1",))
    assert read_before is not None
    begin(three)
    with three.read() as connection:
        (described,) = waiting.described(connection, [read_before])
    assert (described.position, described.waits_for) == (0, None)


def test_on_a_hub_a_paused_follow_up_is_placed_once_it_is_resumed_and_moved_ones_in_their_order(hub: Agents) -> None:
    on(hub, "a1", "a")
    for name in ("a2", "a3", "a4"):
        on(hub, name, "a", continues="a1")
    assert place_all(hub) == ["a1"]
    follow_ups.change(hub.db, "a4", {"before": "a2"})
    lifecycle.finish(hub.db, queries.get(hub.db, "a1").number, Outcome.failure("CLAUDE_ERROR", "x"))
    assert place_all(hub) == []
    follow_ups.resume(hub.db, "a1")
    assert place_all(hub) == ["a4"]
