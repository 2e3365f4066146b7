"""Rows that an earlier version stored unchecked: whatever one row holds, the owners of other rows notice nothing.

One column of one row at a time is set to something that no version of OCC writes; then everything that reads many rows
is called for another owner.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask.testing import FlaskClient

from occ_app.database.rows import sound, unreadable
from occ_app.executions import events, lifecycle, retention, search
from occ_app.executions.records import Outcome, Request
from occ_app.executions.tally import Tally
from occ_app.hub import agent_lists, deliveries, outbox, placement, webhooks
from occ_app.hub import workspaces as hub_workspaces
from occ_app.hub.agents import Agents
from occ_app.system.process_identity import own_identity
from occ_app.system.timestamps import iso_now
from occ_app.workspaces import workspace as workspaces
from tests.hub_app import HubApp, hub_app

POISON: dict[str, Any] = {
    "text": "{non\x00\x1b[2J\r\n<b>\u202e",
    "bytes": b"\x00\xff\xfe",
    "number": 9e999,
    "deep": "[" * 5000 + "]" * 5000,
}
# Columns by which rows find each other; a row with another value there belongs to somebody else, or to nobody.
_LINKS = {
    "executions": ("number", "execution_id", "workspace_generation", "key_id", "owner_id"),
    "events": ("execution", "seq"),
    "workspaces": ("workspace_id", "generation", "key_id", "owner_id"),
    "deliveries": ("number", "execution", "state"),
    "agents": ("agent_id", "key_id"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubApp]:
    with hub_app(tmp_path_factory.mktemp("poisoned"), heartbeat_seconds=100_000.0) as hub:
        yield hub


@dataclass(frozen=True)
class Owner:
    """The owner of the rows that are sound: by key, and by browser."""

    secret: str
    browser: FlaskClient


def own(hub: HubApp, name: str) -> str:
    """Make a key with a machine, a workspace, an execution that is over and one that waits; returns its secret."""
    machine = hub.register(hub.key(f"{name}-machines", "agent"), name)
    assert machine.json is not None
    assert machine.status_code == 201
    secret = hub.key(name, "client")
    rows = hub.database
    with rows.write() as connection:
        connection.execute("UPDATE agents SET workers = 10")
        key_id, owner_id = connection.execute("SELECT key_id, owner_id FROM keys WHERE name = ?", (name,)).fetchone()
        generation = workspaces.new_generation(connection, name)
        connection.execute(
            """
            INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,
                updated_at, key_id, owner_id, zip, upload, generation)
            VALUES (:id, :id, '', '', 1, 1, '[]', :now, :now, :key, :owner, 'z', :number, :number)
            """,
            {"id": name, "now": iso_now(), "key": key_id, "owner": owner_id, "number": generation},
        )
    for execution_id in (f"{name}-done", f"{name}-waits"):
        request = Request(execution_id, name, f"prompt {name}", 9, 9, None, None, None, None, "", key_id, owner_id)
        number = lifecycle.create(rows, request, max_queue=100)[0].number
        if execution_id.endswith("done"):
            with rows.write() as connection:
                connection.execute(
                    "UPDATE executions SET state = 'running', started_at = :now, agent_id = :agent"
                    " WHERE number = :number",
                    {"now": iso_now(), "agent": machine.json["agentId"], "number": number},
                )
            events.append(rows, number, 2, [("output", json.dumps({"chunk": f"needle {name}", "timestamp": 1}))])
            lifecycle.finish(rows, number, Outcome("succeeded", "complete", {"exitCode": 0, "costUsd": 0.5}))
    search.index_some(rows, 10)
    return secret


@pytest.fixture(scope="module")
def owner(hub: HubApp) -> Owner:
    webhooks.add(hub.database, "http://198.51.100.1/", None)
    own(hub, "poisoned")
    secret = own(hub, "victim")
    browser = hub.browser()
    assert browser.post("/login", data={"key": secret}, headers={"Origin": "http://localhost"}).status_code == 303
    return Owner(secret, browser)


def everything_works(hub: HubApp, owner: Owner) -> list[str]:
    """Call whatever reads many rows, for the owner of the others and for the operator; returns what failed."""
    wrong = []
    for path in (
        *("/executions", "/search?q=needle", "/workspaces", "/agents", "/usage?by=day", "/usage?by=workspace"),
        *("/usage?by=agent", "/health", "/conversations", "/approvals"),
    ):
        for secret in (owner.secret, None):
            reply = hub.call("GET", path, secret)
            if reply.status_code != 200 or "NaN" in reply.text or "Infinity" in reply.text:
                wrong.append(f"{path} {'operator' if secret is None else 'owner'}: {reply.status_code}")
            elif path.startswith("/search") and "victim-done" not in reply.text:
                wrong.append(f"{path}: not found")
    for path in ("/executions/victim-done", "/workspaces/victim", "/agents/victim"):
        if hub.call("GET", path, owner.secret).status_code != 200:
            wrong.append(path)
    for path in ("/metrics", "/keys", "/usage?by=key"):
        if hub.call("GET", path).status_code != 200:
            wrong.append(path)
    for path in ("/", "/lists?q=needle", "/runs/victim-done"):
        status = owner.browser.get(path).status_code
        if status != 200:
            wrong.append(f"page {path}: {status}")
    return wrong + work_goes_on(hub)


def work_goes_on(hub: HubApp) -> list[str]:
    """Do what the hub's own processes do with many rows, and undo it; returns what failed."""
    rows, wrong = hub.database, []
    agents = Agents(rows, hub.config.heartbeat_seconds)

    def claimed() -> None:
        found = []
        while (taken := placement.claim(rows, agents, own_identity(), lambda _: True, relays=100)) is not None:
            found.append(taken.execution_id)
        assert "victim-waits" in found, found

    def delivered() -> None:
        found = []
        for _ in range(5):  # each is tried, and fails for good
            for _, number in deliveries.due(rows, "9999", "9999"):
                taken = deliveries.claim(rows, number, "9999", "9999", "9999")
                if taken is not None:
                    found.append(taken.execution.execution_id)
                    deliveries.failed(rows, taken, 410, "", None)
        assert "victim-done" in found, found

    for name, work in {
        "placement": claimed,
        "webhooks": delivered,
        "index": lambda: search.index_some(rows, 5),
        "tally": Tally(rows).look,
        "outbox": lambda: outbox.waiting(rows),
        "machines": lambda: agent_lists.page(agents, 100),
        "zips": lambda: hub_workspaces.remove_unused_zips(rows, hub.config),
        "retention": lambda: retention.enforce(rows, 9000, 1 << 40, 5),
    }.items():
        try:
            work()
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    return wrong


def columns(hub: HubApp, table: str) -> list[str]:
    with hub.database.read() as connection:
        return [row["name"] for row in connection.execute(f"PRAGMA table_info({table})").fetchall()]


_ROWS = {
    "executions": "execution_id IN ('poisoned-done', 'poisoned-waits')",
    "events": "execution = (SELECT number FROM executions WHERE execution_id = 'poisoned-done') AND seq > 1",
    "workspaces": "workspace_id = 'poisoned'",
    "agents": "name = 'poisoned'",
    "deliveries": "execution = (SELECT number FROM executions WHERE execution_id = 'poisoned-done')",
}


@pytest.mark.parametrize("kind", POISON)
@pytest.mark.parametrize("table", _ROWS)
def test_a_poisoned_row_stops_nobody_else(hub: HubApp, owner: Owner, table: str, kind: str) -> None:
    """All columns at once, and in `make test-all` one after the other."""
    backup = sqlite3.connect(":memory:")
    with hub.database.read() as connection:
        connection.backup(backup)
    names = [column for column in columns(hub, table) if column not in _LINKS[table]]
    wrong = dict[str, list[str]]()
    for chosen in [names, *([name] for name in names if os.environ.get("TEST_ALL"))]:
        for column in chosen:
            with hub.database.write() as connection, contextlib.suppress(sqlite3.Error):
                statement = f"UPDATE {table} SET {column} = ? WHERE {_ROWS[table]}"  # noqa: S608 - the schema's names
                connection.execute(statement, (POISON[kind],))
        failed = everything_works(hub, owner)
        if failed:
            wrong[" ".join(chosen)] = failed
        restore(hub, backup)
    backup.close()
    assert not wrong, "\n".join(f"{name}: {failed}" for name, failed in wrong.items())


def test_without_poison_everything_works_and_with_it_the_rows_are_counted(hub: HubApp, owner: Owner) -> None:
    backup = sqlite3.connect(":memory:")
    with hub.database.read() as connection:
        connection.backup(backup)
    assert everything_works(hub, owner) == []
    restore(hub, backup)
    with hub.database.write() as connection:
        connection.execute(
            "UPDATE executions SET started_at = x'00', agent_id = 7 WHERE execution_id = 'poisoned-done'"
        )
    before = unreadable()
    assert hub.call("GET", "/executions").status_code == 200
    health = hub.call("GET", "/health").json
    assert health is not None
    assert health["skipped"]["unreadableRows"] == unreadable() >= before
    assert unreadable() > 0
    restore(hub, backup)
    backup.close()


def test_a_value_of_each_kind_becomes_one_of_the_field_s_type() -> None:
    @dataclass(frozen=True)
    class Row:
        text: str
        maybe: str | None
        number: int
        perhaps: int | None
        share: float
        flag: bool
        made_at: str
        ended_at: str | None

    def read(**values: Any) -> Row:
        given = {"text": "", "maybe": None, "number": 0, "perhaps": None, "share": 0.0, "flag": False}
        return Row(**sound(Row, {**given, "made_at": "2026-01-01T00:00:00.000Z", "ended_at": None, **values}, "key"))

    assert read(text=b"\xffa", maybe=5) == read(text="\ufffda", maybe="5")
    assert read(number="x", perhaps="x", share="x") == read(number=9e999, perhaps=9e999, share=9e999) == read()
    assert (read(number=3.0).number, read(number=2**40).number, read(perhaps=0).perhaps) == (3, 2**40, 0)
    assert (read(flag="yes").flag, read(flag=1).flag, read(flag=2).flag) == (False, True, False)
    assert read(made_at="soon", ended_at="soon") == read(made_at="1970-01-01T00:00:00.000Z")


def test_unknown_codes_make_one_label(hub: HubApp) -> None:
    backup = sqlite3.connect(":memory:")
    with hub.database.read() as connection:
        connection.backup(backup)
    with hub.database.write() as connection:
        connection.executemany(
            """
            INSERT INTO executions (execution_id, workspace_id, state, request_hash, prompt, timeout_seconds,
                idle_timeout_seconds, created_at, error_code, last_seq)
            VALUES (:id, 'w', 'failed', '', 'x', 1, 1, '2026-01-01T00:00:00.000Z', :code, 1)
            """,
            [{"id": f"code-{number}", "code": f"CODE_{number}"} for number in range(500)],
        )
    counted = Tally(hub.database).look()
    assert counted.ended["failed", "OTHER"] == 500
    assert len(counted.ended) < 10
    restore(hub, backup)
    backup.close()


def restore(hub: HubApp, backup: sqlite3.Connection) -> None:
    target = sqlite3.connect(hub.config.database)
    backup.backup(target)
    target.close()
