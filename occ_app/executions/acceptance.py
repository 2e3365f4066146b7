"""Rows of accepted executions, and the SQL that makes them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from occ_app.executions import attachments, branches, conversations, events, rules, waiting
from occ_app.executions.queries import from_row
from occ_app.executions.records import Execution, Request
from occ_app.system import compact_json, timestamps
from occ_app.system.timestamps import iso_now


def request_hash(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a body's canonical JSON.

    Equal bodies are the same request.
    """
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def insert(
    connection: sqlite3.Connection,
    request: Request,
    generation: int,
    former: Execution | None,
    *,
    agent_id: str | None = None,
    free_workers: int = 0,
    alone: bool = False,
) -> Execution:
    """Insert a queued execution, which continues `former`, and its `queued` event.

    `agent_id` is the agent that the request names, `free_workers` are those that it may use; `alone` when nothing else
    waits.
    """
    row = connection.execute(
        """
        INSERT INTO executions (execution_id, workspace_id, workspace_generation, state, request_hash, prompt,
            timeout_seconds, idle_timeout_seconds, requested_model, max_turns, max_budget_usd, resume_session_id,
            created_at, key_id, owner_id, permissions, wanted_agent, wanted_labels, conversation,
            continues, notify, attachments, approval_seconds, fork, rewind_to, local_sharing, permissions_named)
        VALUES (:execution_id, :workspace_id, :generation, 'queued', :hash, :prompt,
            :timeout_seconds, :idle_timeout_seconds, :model, :max_turns, :max_budget_usd, :session_id,
            :created_at, :key_id, :owner_id, :permissions, :agent_id, :wanted_labels, :conversation,
            :former, :notify, :attachments, :approval_seconds,
            :fork, :rewound_turn, :local_sharing, :permissions_named)
        RETURNING *, 1 AS newest_seq
        """,
        {
            **vars(request),
            "generation": generation,
            "created_at": iso_now(),
            "agent_id": agent_id,
            "conversation": conversations.conversation_of(connection, request, former, generation),
            "former": None if former is None else former.number,
            "rewound_turn": branches.rewound_turn(connection, request, former, generation),
            "attachments": compact_json.to_json([each.summary for each in request.attachments]),
            "wanted_labels": compact_json.to_json(request.labels) if request.labels else None,
        },
    ).fetchall()[0]
    number = int(row["number"])
    attachments.insert(connection, number, request.attachments)
    rules.insert(connection, number, request.rules, request.key_id or "token")
    position = 0 if alone else waiting.Line(connection).ahead(number, free_workers)
    data = compact_json.to_json({"position": position, "timestamp": timestamps.milliseconds()})
    events.insert(connection, number, 1, [("queued", data)])
    execution = from_row(row)
    return Execution(**{**vars(execution), "position": position})
