"""OCC with a long past: very many stored executions.

They are written straight into a stopped agent's database.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.agent import Occ
from benchmarks.capture import Prompt
from benchmarks.measure import SIZE_BYTES
from benchmarks.rows import Plan, Row
from benchmarks.streams import read

FEW, MANY = 100, 100_000
DATABASE_BYTES = 5 << 30
_EVENTS = 13  # of each stored execution


def fill(database: Path, executions: int, total_bytes: int) -> None:
    """Store that many finished executions whose events make up about `total_bytes`."""
    text = "x" * (total_bytes // executions // (_EVENTS - 1) - 100)
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            """
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
            INSERT INTO executions (execution_id, workspace_id, state, request_hash, prompt, timeout_seconds,
                idle_timeout_seconds, created_at, started_at, finished_at, exit_code, last_seq)
            SELECT 'stored-' || i, 'lane-' || (i % 5), 'succeeded', '', 'n=1 rate=0 size=40', 60, 60, ?, ?, ?, 0, ?
            FROM n
            """,
            (executions, now, now, now, _EVENTS),
        )
        connection.execute(
            """
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
            INSERT INTO events (execution, seq, event, data)
            SELECT x.number, i, CASE i WHEN ? THEN 'complete' ELSE 'output' END,
                json_object('chunk', CASE i WHEN ? THEN '' ELSE ? END, 'timestamp', 0)
            FROM executions x, n
            WHERE x.execution_id LIKE 'stored-%'
            """,
            (_EVENTS, _EVENTS, _EVENTS, text),
        )


def agents(make: Callable[[str], Occ]) -> tuple[Occ, Occ]:
    """Two running agents, the one with few stored executions and the one with many."""
    made = []
    for name, executions, total in (("few", FEW, FEW * DATABASE_BYTES // MANY), ("many", MANY, DATABASE_BYTES)):
        occ = make(name)
        occ.start()
        occ.stop()
        fill(occ.home / "occ.db", executions, total)
        occ.start()
        made.append(occ)
    return made[0], made[1]


def rows(few: Occ, many: Occ, plan: Plan) -> list[Row]:
    """Return the times of the same requests with a short and with a long past.

    The two agents are asked in turn.
    """
    agents = {"empty": few, "occ": many}
    firsts: dict[str, list[float]] = {name: [] for name in agents}
    lists: dict[str, list[float]] = {name: [] for name in agents}
    jobs: dict[str, list[float]] = {name: [] for name in agents}
    for turn in range(plan.runs):
        for name, occ in agents.items():
            time.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - so that no timer of the daemon is met in step
            firsts[name].append(read(occ.begin(Prompt(1, 0, SIZE_BYTES))).first_ms)
            lists[name].append(1000 * occ.get("/executions"))
            if turn % 10 == 0:
                jobs[name].append(1000 * occ.command_seconds("jobs"))
    past = f"{MANY:,} stored executions, {DATABASE_BYTES >> 30} GB, beside {FEW}"
    return [
        Row(f"{past}: request → first output", "ms", firsts, "≤ 1.2"),
        Row(f"{past}: GET /executions", "ms", lists, "≤ 1.2"),
        Row(f"{past}: `occ jobs`", "ms", jobs),
    ]
