"""The events of webhooks, the choice of them, and the headers of Standard Webhooks."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlite_utils
from click.testing import CliRunner

from occ_app.cli.webhooks import webhooks as commands
from occ_app.database import schema
from occ_app.database.database import Database, connect
from occ_app.executions import answers, approvals, lifecycle
from occ_app.executions.answers import Answer, Person
from occ_app.executions.records import Execution, Outcome, Request
from occ_app.hub import deliveries, webhooks
from occ_app.system.process_identity import own_identity
from occ_worker.control import delivery
from tests.hub_app import HubApp, hub_app


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path) as hub:
        hub.workspace("work")
        yield hub


def started(rows: Database, execution_id: str = "e1") -> Execution:
    """An execution that runs."""
    asked = Request(execution_id, "work", "a prompt", 60, 60, None, None, None, None, execution_id)
    lifecycle.create(rows, asked, max_queue=10)
    execution = lifecycle.claim(rows, own_identity())
    assert execution is not None
    return execution


def asked(rows: Database, execution: Execution) -> answers.Approval:
    """An open approval of a Bash call, whose input has a secret."""
    hashed = hashlib.sha256(b"input").hexdigest()
    return approvals.ask(rows, execution.number, answers.Request("tool", "Bash", {"command": "s3cret"}, hashed), 60)


def ended(rows: Database, execution: Execution) -> None:
    lifecycle.finish(rows, execution.number, Outcome("succeeded", "complete", {"exitCode": 0}))


def events(rows: Database) -> list[str]:
    """The events of all deliveries, oldest first."""
    return [made.event for made in reversed(deliveries.log(rows, 100))]


def sent(rows: Database, event: str) -> dict[str, object]:
    """The body of the delivery of this event."""
    number = next(made.number for made in deliveries.log(rows, 100) if made.event == event)
    claimed = deliveries.claim(rows, number, "9999", "9999", "9999")
    assert claimed is not None
    body: dict[str, object] = json.loads(delivery.body(claimed))
    return body


def test_a_webhook_gets_the_events_it_chose_and_each_once(hub: HubApp) -> None:
    webhooks.add(hub.database, "https://example.com/all", events=webhooks.EVENTS)
    execution = started(hub.database)
    approval = asked(hub.database, execution)
    approvals.decide(hub.database, approval.approval_id, Answer("deny", message="no"), Person("key-1"))
    approvals.decide(hub.database, approval.approval_id, Answer("deny", message="no"), Person("key-1"))
    withdrawn = asked(hub.database, execution)
    assert approvals.close(hub.database, withdrawn.approval_id, "withdrawn", "not needed any more")
    with hub.database.write() as connection:  # as a hub that places an execution a second time
        connection.execute("UPDATE executions SET started_at = NULL")
        connection.execute("UPDATE executions SET started_at = '2026-01-01T00:00:00.000Z'")
    ended(hub.database, execution)
    assert events(hub.database) == [
        "execution.started",
        "execution.needs_approval",
        "execution.approved",
        "execution.needs_approval",
        "execution.finished",
    ]


def test_a_webhook_without_a_choice_gets_ends_alone(hub: HubApp) -> None:
    webhooks.add(hub.database, "https://example.com/ends")
    webhooks.add(hub.database, "https://example.com/asks", events=["execution.needs_approval"])
    execution = started(hub.database)
    asked(hub.database, execution)
    ended(hub.database, execution)
    made = {(one.webhook_id, one.event) for one in deliveries.log(hub.database, 100)}
    ends, asks = (hook.webhook_id for hook in webhooks.listing(hub.database))
    assert made == {(ends, "execution.finished"), (asks, "execution.needs_approval")}


def test_the_event_of_an_approval_names_it_without_its_input(hub: HubApp) -> None:
    webhooks.add(hub.database, "https://example.com/all", events=webhooks.EVENTS)
    execution = started(hub.database)
    approval = asked(hub.database, execution)
    body = sent(hub.database, "execution.needs_approval")
    assert body["event"] == "execution.needs_approval"
    assert body["approval"] == {
        "approvalId": approval.approval_id,
        "kind": "tool",
        "tool": "Bash",
        "reason": None,
        "askedAt": approval.asked_at,
        "expiresAt": approval.expires_at,
        "state": "open",
        "actor": None,
        "decidedAt": None,
    }
    assert "s3cret" not in json.dumps(body)
    approvals.decide(hub.database, approval.approval_id, Answer("allow", approval.input_hash), Person("key-1"))
    assert sent(hub.database, "execution.approved")["approval"]["state"] == "allowed"  # type: ignore[index]
    assert "approval" not in sent(hub.database, "execution.started")


def test_the_event_of_an_approval_that_is_gone_is_sent_without_it(hub: HubApp) -> None:
    webhooks.add(hub.database, "https://example.com/all", events=webhooks.EVENTS)
    asked(hub.database, started(hub.database))
    with hub.database.write() as connection:
        connection.execute("DELETE FROM approvals")
    assert "approval" not in sent(hub.database, "execution.needs_approval")


def test_the_standard_signature_is_that_of_the_published_examples() -> None:
    # The examples of https://github.com/standard-webhooks/standard-webhooks, of its text and its Python library.
    for secret, message, moment, body, signature in (
        (
            *("whsec_plJ3nmyCDGBKInavdOK15jsl", "msg_loFOjxBNrRLzqYUf", 1731705121),
            *(b'{"event_type":"ping","data":{"success":true}}', "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="),
        ),
        (
            *("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330),
            *(b'{"test": 2432232314}', "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ),
    ):
        assert delivery.standard_signature(secret, message, moment, body) == signature


def test_a_secret_from_before_signs_as_its_own_bytes() -> None:
    old = "occ_webhook_" + "x" * 43
    spelled = "whsec_" + base64.b64encode(old.encode()).decode()  # the form that a library takes
    signatures = {delivery.standard_signature(secret, "msg", 1, b"body") for secret in (old, spelled)}
    assert len(signatures) == 1


def test_new_secrets_have_the_form_that_libraries_take(hub: HubApp) -> None:
    _, secret = webhooks.add(hub.database, "https://example.com/")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert secret.startswith("whsec_")


def test_the_command_adds_events_and_the_list_shows_them(hub: HubApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCC_HUB_HOME", str(hub.config.home))
    run = CliRunner().invoke
    chosen = ["--event", "execution.started", "--event", "execution.finished", "--event", "execution.started"]
    assert run(commands, ["add", "https://example.com/", *chosen]).exit_code == 0
    assert run(commands, ["add", "https://example.com/", "--event", "execution.queued"]).exit_code == 2
    (listed,) = json.loads(run(commands, ["list", "--json"]).stdout)["webhooks"]
    assert listed["events"] == ["execution.started", "execution.finished"]
    started(hub.database)
    (made,) = json.loads(run(commands, ["log", "--json"]).stdout)["deliveries"]
    assert made["event"] == "execution.started"
    assert "started" in run(commands, ["log"]).stdout


def test_deliveries_and_webhooks_from_before_keep_their_meaning(tmp_path: Path) -> None:
    """A database of the schema before the events: its webhook gets ends alone, its deliveries are those of ends."""
    path = tmp_path / "occ.db"
    connection = connect(path)
    schema._migrations().apply(sqlite_utils.Database(connection), stop_before="m022_webhook_events")
    connection.executescript(
        """
        PRAGMA foreign_keys = OFF;
        INSERT INTO webhooks (webhook_id, url, secret, created_at) VALUES ('hook', 'https://a/', 's', '');
        INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at, updated_at)
            VALUES ('work', 'work', '', '', 0, 0, '[]', '', '');
        INSERT INTO deliveries (number, webhook_id, execution, state, next_at, created_at, delivery_id)
            VALUES (7, 'hook', 1, 'waiting', '', '', 'delivery-7');
        """
    )
    schema._migrations().apply(sqlite_utils.Database(connection))
    kept = connection.execute("SELECT number, delivery_id, event FROM deliveries").fetchall()
    assert [tuple(row) for row in kept] == [(7, "delivery-7", "execution.finished")]
    connection.execute("DELETE FROM deliveries")
    connection.close()
    rows = Database(path)
    assert [hook.events for hook in webhooks.listing(rows)] == [("execution.finished",)]
    execution = started(rows)
    asked(rows, execution)
    ended(rows, execution)
    assert [(made.number, made.event) for made in deliveries.log(rows, 9)] == [(8, "execution.finished")]
    rows.close()
