"""An agent and a hub count an execution's output alike, so that one limit means one thing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from occ_app.client.event_checks import RawEvent
from occ_app.database.database import Database
from occ_app.errors import Unavailable
from occ_app.executions import events, lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Request
from occ_app.system.compact_json import to_json
from occ_app.system.process_identity import own_identity
from occ_worker.recorder import Recorder
from occ_worker.relay.relay import Relay
from tests.databases import database_with

CHUNKS = ("plain", "日本語", "line\n" * 30, "ü" * 500)
OUTPUT = [("output", to_json({"chunk": chunk, "timestamp": 1_700_000_000_000})) for chunk in CHUNKS]
BYTES = sum(100 + len(data.encode()) for _, data in OUTPUT)


@pytest.fixture
def rows(tmp_path: Path) -> Database:
    return database_with(tmp_path / "occ.db", "work")


def running(rows: Database, stored: int = 0) -> Execution:
    """A running execution of which an earlier process stored the first events of OUTPUT."""
    request = Request("e", "work", "a prompt", 9, 9, None, None, None, None, "")
    number = lifecycle.create(rows, request, max_queue=1)[0].number
    lifecycle.claim(rows, own_identity())
    if stored:
        events.append(rows, number, 2, OUTPUT[:stored])
    with rows.read() as connection:
        return executions.numbered(connection, number)


def over_on_an_agent(rows: Database, execution: Execution, stored: int, limit: int) -> bool:
    recorder = Recorder(rows, execution, limit, lambda _: None)
    for event in OUTPUT[stored:]:
        recorder.store([event])
    return recorder.overflow is not None


def over_on_a_hub(rows: Database, execution: Execution, stored: int, limit: int) -> bool:
    sent = [RawEvent(number, *event) for number, event in enumerate(OUTPUT, 2)][stored:]
    sent.append(
        RawEvent(
            len(OUTPUT) + 2, "error", to_json({"code": "CLAUDE_EXIT", "message": "", "timestamp": 1_700_000_000_000})
        )
    )
    client = SimpleNamespace(batches=lambda *_, **__: iter([[event] for event in sent]))
    context: Any = SimpleNamespace(
        config=SimpleNamespace(max_output_bytes=limit, reconnect_seconds=0),
        db=rows,
        agents=SimpleNamespace(find=lambda _: SimpleNamespace(agent_id="agent-1", name="machine")),
        calls=SimpleNamespace(client=lambda _: client),
        readers=SimpleNamespace(ring=lambda *_: None),
        hub_id="hub-1",
        removed=(),
        stopping=lambda: False,
    )
    relay = Relay(context, execution)
    relay.run()
    return executions.get(rows, "e").error_code == "OUTPUT_LIMIT"


@pytest.mark.parametrize("over", [over_on_an_agent, over_on_a_hub])
@pytest.mark.parametrize("stored", [1, 3])
@pytest.mark.parametrize(("limit", "expected"), [(BYTES, False), (BYTES - 1, True)])
def test_an_agent_and_a_hub_count_output_alike(
    rows: Database, over: Any, stored: int, limit: int, expected: bool
) -> None:
    assert over(rows, running(rows, stored), stored, limit) is expected


@pytest.mark.parametrize(("limit", "expected"), [(BYTES, False), (BYTES - 1, True)])
def test_output_of_one_process_counts_to_the_byte(rows: Database, limit: int, expected: bool) -> None:
    execution = running(rows)
    assert over_on_an_agent(rows, execution, 0, limit) is expected
    assert events.stored_bytes(rows, execution.number) == BYTES


def test_output_that_cannot_be_stored_is_kept_up_to_32_megabytes_and_then_ends_the_execution(
    rows: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(rows, running(rows), 1 << 40, lambda _: None)
    piece = ("output", to_json({"chunk": "x" * 1_000_000, "timestamp": 1}))

    def held(*_: object) -> None:
        raise Unavailable("BUSY", "held")

    with monkeypatch.context() as patched:
        patched.setattr(events, "append", held)
        for _ in range(33):  # 33,003,000 bytes, and the bound is 33,554,432
            recorder.store([piece])
        assert recorder.overflow is None
        assert recorder.retry_at is not None
    recorder.store([])
    assert recorder.seq == 1 + 33
    with monkeypatch.context() as patched:
        patched.setattr(events, "append", held)
        for _ in range(34):
            recorder.store([piece])
    assert recorder.overflow is not None
    assert recorder.overflow[0] == "INTERNAL"
