"""The schema of occ.db, as steps that were each released once and are never changed.

`sqlite-utils migrate` finds this file; the daemon applies it under a lock. A new step goes to the end, and
`SCHEMA_VERSION` in occ_app/db.py counts them.
"""

from sqlite_utils import Database, Migrations

occ = Migrations("occ")


@occ()
def m001_workspaces_executions_events(db: Database) -> None:
    for statement in (
        """
        CREATE TABLE workspaces (
            workspace_id TEXT PRIMARY KEY,
            name         TEXT NOT NULL,
            description  TEXT NOT NULL,
            path         TEXT NOT NULL,
            files        INTEGER NOT NULL,
            bytes        INTEGER NOT NULL,
            skipped      TEXT NOT NULL,  -- JSON: [{"path", "reason"}]
            created_at   TEXT NOT NULL,
            updated_at   TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE workspace_jobs (
            number       INTEGER PRIMARY KEY AUTOINCREMENT,
            workspace_id TEXT NOT NULL,
            name         TEXT NOT NULL,
            description  TEXT NOT NULL,
            policy       TEXT NOT NULL CHECK (policy IN ('overwrite', 'reuse')),
            zip_path     TEXT NOT NULL,
            state        TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'abandoned')),
            result       TEXT,           -- JSON: the reply, or {"code", "message", "details"}
            created_at   TEXT NOT NULL,
            finished_at  TEXT
        )
        """,
        """
        CREATE TABLE executions (
            number               INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of acceptance
            execution_id         TEXT NOT NULL UNIQUE,
            workspace_id         TEXT NOT NULL,
            state                TEXT NOT NULL
                                 CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
            request_hash         TEXT NOT NULL,
            prompt               TEXT,
            timeout_seconds      REAL NOT NULL,
            idle_timeout_seconds REAL NOT NULL,
            requested_model      TEXT,
            max_turns            INTEGER,
            max_budget_usd       REAL,
            resume_session_id    TEXT,
            created_at           TEXT NOT NULL,
            started_at           TEXT,
            finished_at          TEXT,
            stop_requested       TEXT,     -- the error code to end it with, once somebody asked
            owner_boot_id        TEXT,     -- the worker that runs it: boot, pid and start time of the process
            owner_pid            INTEGER,
            owner_start          INTEGER,
            deadline             REAL,     -- on the owner's monotonic clock, in seconds
            exit_code            INTEGER,
            signal               INTEGER,
            error_code           TEXT,
            error_message        TEXT,
            session_id           TEXT,
            model                TEXT,
            claude_version       TEXT,
            cost_usd             REAL,
            usage                TEXT,     -- JSON, as the CLI reports it
            num_turns            INTEGER,
            duration_ms          INTEGER,
            last_seq             INTEGER   -- set when it is over; until then the newest event tells
        )
        """,
        "CREATE INDEX executions_active ON executions (state, workspace_id, number)"
        " WHERE state IN ('queued', 'running')",
        # What retention has not forgotten yet: an execution without a prompt is.
        "CREATE INDEX executions_stored ON executions (number) WHERE prompt IS NOT NULL",
        "CREATE INDEX executions_by_workspace ON executions (workspace_id, number)",
        "CREATE INDEX executions_by_state ON executions (state, number)",
        """
        CREATE TABLE events (
            execution INTEGER NOT NULL REFERENCES executions (number),
            seq       INTEGER NOT NULL,   -- 1, 2, 3 ... within the execution
            event     TEXT NOT NULL,
            data      TEXT NOT NULL,      -- one JSON object, just as a client receives it
            PRIMARY KEY (execution, seq)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE agent (
            key   TEXT PRIMARY KEY,       -- 'heartbeat', 'claude'
            value TEXT NOT NULL           -- JSON
        ) WITHOUT ROWID
        """,
        """
        CREATE VIEW execution_log AS
        SELECT x.execution_id, x.workspace_id, x.state, e.seq, e.event,
               strftime('%Y-%m-%dT%H:%M:%fZ', json_extract(e.data, '$.timestamp') / 1000.0, 'unixepoch') AS at,
               coalesce(json_extract(e.data, '$.chunk'), json_extract(e.data, '$.message'),
                        json_extract(e.data, '$.name'), json_extract(e.data, '$.result')) AS text,
               e.data
        FROM executions x JOIN events e ON e.execution = x.number
        """,
        """
        CREATE VIEW transcript AS
        SELECT x.execution_id, x.workspace_id, x.state, x.created_at, x.prompt,
               (SELECT group_concat(chunk, '')
                FROM (SELECT json_extract(data, '$.chunk') AS chunk FROM events
                      WHERE execution = x.number AND event = 'output' ORDER BY seq)) AS output,
               x.error_code, x.error_message, x.cost_usd
        FROM executions x
        """,
    ):
        db.execute(statement)
