"""The schema of occ.db, as steps that were each released once and never change.

`sqlite-utils migrate` finds this file; the daemon applies it under a lock. A new step goes to the end, and
`SCHEMA_VERSION` in occ_app/database/schema.py counts them.
"""

import itertools
import re
from collections.abc import Iterator

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


@occ()
def m002_search(db: Database) -> None:
    for statement in (
        # One row an execution, under its number, written once it is over; the text is that of prompt and output.
        "CREATE VIRTUAL TABLE search USING fts5 (prompt, output, tokenize = 'unicode61 remove_diacritics 2')",
        # Executions that are over and not in `search` yet.
        "CREATE TABLE unindexed (number INTEGER PRIMARY KEY)",
        """
        CREATE TRIGGER executions_finished AFTER UPDATE OF finished_at ON executions
        WHEN new.finished_at IS NOT NULL AND old.finished_at IS NULL
        BEGIN
            INSERT OR IGNORE INTO unindexed (number) VALUES (new.number);
        END
        """,
        "INSERT INTO unindexed SELECT number FROM executions WHERE finished_at IS NOT NULL AND prompt IS NOT NULL",
    ):
        db.execute(statement)


@occ()
def m003_hub(db: Database) -> None:
    """Tables that only a hub uses; on an agent they stay empty."""
    for statement in (
        """
        CREATE TABLE keys (
            key_id     TEXT PRIMARY KEY,
            name       TEXT NOT NULL,
            kind       TEXT NOT NULL CHECK (kind IN ('agent', 'client')),
            admin      INTEGER NOT NULL,  -- sees and uses what other keys made
            hash       TEXT NOT NULL UNIQUE,  -- SHA-256 of the key, in hexadecimal
            most       INTEGER,           -- machines, or executions that wait or run; NULL: any number
            created_at TEXT NOT NULL,
            expires_at TEXT,
            revoked_at TEXT
        ) WITHOUT ROWID
        """,
        "CREATE UNIQUE INDEX keys_by_name ON keys (name) WHERE revoked_at IS NULL",
        """
        CREATE TABLE agents (
            agent_id        TEXT PRIMARY KEY,
            key_id          TEXT NOT NULL REFERENCES keys (key_id),
            name            TEXT NOT NULL,
            token           TEXT NOT NULL UNIQUE,  -- not hashed: the hub calls the agent with it
            url             TEXT,           -- its --public-url
            address         TEXT NOT NULL,  -- where its registration came from
            port            INTEGER NOT NULL,
            tls_fingerprint TEXT,
            workers         INTEGER NOT NULL,
            labels          TEXT NOT NULL,  -- JSON: ["gpu"]
            version         TEXT NOT NULL,
            platform        TEXT NOT NULL,
            claude_version  TEXT,
            registered_at   TEXT NOT NULL,
            draining        INTEGER NOT NULL DEFAULT 0,
            reachable       TEXT,           -- 'direct' when its address answers the hub
            status          TEXT NOT NULL,  -- as its last beat said it: healthy, degraded, stopping
            busy            INTEGER NOT NULL DEFAULT 0,
            waiting         INTEGER NOT NULL DEFAULT 0,
            running         TEXT NOT NULL DEFAULT '[]',  -- JSON: the ids of its executions
            last_seen_at    TEXT NOT NULL,
            heard_boot_id   TEXT NOT NULL,  -- the hub's boot, and the seconds since it, when it was last heard
            heard           REAL NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE errands (
            number     INTEGER PRIMARY KEY AUTOINCREMENT,
            agent_id   TEXT NOT NULL,
            method     TEXT NOT NULL,       -- a call to make when that agent can be reached
            path       TEXT NOT NULL,
            created_at TEXT NOT NULL,
            UNIQUE (agent_id, method, path)
        )
        """,
        "ALTER TABLE executions ADD COLUMN key_id TEXT",
        "ALTER TABLE executions ADD COLUMN agent_id TEXT",
        "ALTER TABLE executions ADD COLUMN wanted_agent TEXT",
        "ALTER TABLE executions ADD COLUMN wanted_labels TEXT",  # JSON
        "ALTER TABLE executions ADD COLUMN waits_for TEXT",
        "ALTER TABLE executions ADD COLUMN offered INTEGER",  # 1 once its agent may have heard of it
        "CREATE INDEX executions_by_key ON executions (key_id, number) WHERE key_id IS NOT NULL",
        "CREATE INDEX executions_by_agent ON executions (agent_id, number) WHERE agent_id IS NOT NULL",
        "CREATE INDEX executions_placed ON executions (agent_id) WHERE state = 'running'",
        "ALTER TABLE workspace_jobs ADD COLUMN key_id TEXT",
        "ALTER TABLE workspaces ADD COLUMN key_id TEXT",
        "ALTER TABLE workspaces ADD COLUMN agent_id TEXT",  # where it lives, from its first execution on
        "ALTER TABLE workspaces ADD COLUMN zip TEXT",  # SHA-256 of the stored zip
        "ALTER TABLE workspaces ADD COLUMN upload INTEGER",  # the job that brought the newest zip
        "ALTER TABLE workspaces ADD COLUMN placed INTEGER",  # the job whose zip its agent has; 0: offered
    ):
        db.execute(statement)


@occ()
def m004_pages_and_webhooks(db: Database) -> None:
    for statement in (
        """
        CREATE TABLE logins (
            hash       TEXT PRIMARY KEY,    -- SHA-256 of the cookie
            key_id     TEXT NOT NULL REFERENCES keys (key_id),
            csrf       TEXT NOT NULL,
            created_at TEXT NOT NULL,
            expires_at TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE webhooks (
            webhook_id TEXT PRIMARY KEY,
            url        TEXT NOT NULL,
            secret     TEXT NOT NULL,       -- not hashed: deliveries are signed with it
            key_id     TEXT REFERENCES keys (key_id),  -- whose executions; NULL: everybody's
            created_at TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE deliveries (
            number     INTEGER PRIMARY KEY AUTOINCREMENT,
            webhook_id TEXT NOT NULL,
            execution  INTEGER NOT NULL REFERENCES executions (number),
            state      TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'failed')),
            attempts   INTEGER NOT NULL DEFAULT 0,
            next_at    TEXT,                -- when it is tried again
            status     INTEGER,             -- the last answer's HTTP status
            problem    TEXT,
            created_at TEXT NOT NULL,
            finished_at TEXT
        )
        """,
        "CREATE INDEX deliveries_waiting ON deliveries (next_at) WHERE state = 'waiting'",
        """
        CREATE TRIGGER executions_delivered AFTER UPDATE OF finished_at ON executions
        WHEN new.finished_at IS NOT NULL AND old.finished_at IS NULL
        BEGIN
            INSERT INTO deliveries (webhook_id, execution, state, next_at, created_at)
            SELECT webhook_id, new.number, 'waiting', new.finished_at, new.finished_at FROM webhooks
            WHERE key_id IS NULL OR key_id = new.key_id;
        END
        """,
    ):
        db.execute(statement)


@occ()
def m005_costs_of_one_run(db: Database) -> None:
    """Correct the costs of runs that resumed a session under CLI 2.1.330 or later.

    That CLI reports the session's total. Where the rows before a run show the total it started from, the cost becomes
    the difference. A cost that may still include other runs is marked with `cost_exact` 0. The events that were sent
    are not changed.
    """
    db.execute("ALTER TABLE executions ADD COLUMN cost_exact INTEGER NOT NULL DEFAULT 1")
    rows = db.execute(
        """
        SELECT number, session_id, resume_session_id, CAST(claude_version AS TEXT),
               CASE WHEN typeof(cost_usd) IN ('integer', 'real') AND cost_usd BETWEEN 0 AND 1e9 THEN cost_usd END,
               started_at, finished_at
        FROM executions WHERE started_at IS NOT NULL AND coalesce(session_id, resume_session_id) IS NOT NULL
        ORDER BY coalesce(session_id, resume_session_id), started_at, number
        """
    ).fetchall()
    for _, session in itertools.groupby(rows, lambda row: row[1] or row[2]):
        for number, cost, exact in _own_costs(list(session)):
            db.execute(
                "UPDATE executions SET cost_usd = :cost, cost_exact = :exact WHERE number = :number",
                {"cost": cost, "exact": exact, "number": number},
            )


_Row = tuple[int, str | None, str | None, str | None, float | None, str, str | None]
_NEVER = "9999"  # later than any time that is stored


def _own_costs(session: list[_Row]) -> Iterator[tuple[int, float, bool]]:
    """Yield the number, corrected cost and exactness of runs of one session.

    Only runs whose stored cost needs a change.
    """
    total: float | None = None  # the session's, as far as it is known
    complete = True  # False while a run since `total` has spent an unknown amount
    linear = True  # False once two runs overlapped, or a run began from another session or under an older CLI
    until = ""
    for number, session_id, resumed, version, cost, started, finished in session:
        reports_total = _version(version) >= (2, 1, 330)
        linear = linear and started >= until and (None in (resumed, session_id) or resumed == session_id)
        if resumed is not None and cost and _version(version) > (2, 1, 197):
            if linear and reports_total and total is not None and cost >= total:
                yield number, round(cost - total, 10), complete
            else:
                yield number, cost, False
        until = max(until, finished or _NEVER)
        if cost:
            linear = linear and reports_total
            total, complete = max(cost, total or 0.0), True
        elif cost is None and session_id is not None:
            complete = False


def _version(text: str | None) -> tuple[int, ...]:
    """Return a CLI version as numbers.

    An unknown one counts as between the two that were measured.
    """
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", text or "2.1.198")
    return tuple(map(int, match.groups())) if match else (2, 1, 198)


@occ()
def m006_direct_calls(db: Database) -> None:
    # 0: the agent listens on loopback alone, so its hub calls it over the link.
    db.execute("ALTER TABLE agents ADD COLUMN direct INTEGER NOT NULL DEFAULT 1")


@occ()
def m007_workspace_generations(db: Database) -> None:
    """Number the workspaces, so that executions belong to one and not to its id."""
    for statement in (
        """
        CREATE TABLE workspace_generations (  -- every workspace there ever was
            generation   INTEGER PRIMARY KEY AUTOINCREMENT,
            workspace_id TEXT NOT NULL
        )
        """,
        "INSERT INTO workspace_generations (workspace_id)"
        " SELECT workspace_id FROM workspaces ORDER BY created_at, workspace_id",
        "ALTER TABLE workspaces ADD COLUMN generation INTEGER NOT NULL DEFAULT 0",
        """
        UPDATE workspaces SET generation = (
            SELECT g.generation FROM workspace_generations g WHERE g.workspace_id = workspaces.workspace_id)
        """,
        "CREATE UNIQUE INDEX workspaces_by_generation ON workspaces (generation)",
        # No row is without a number, also one that another program inserts.
        """
        CREATE TRIGGER workspaces_numbered AFTER INSERT ON workspaces WHEN new.generation = 0
        BEGIN
            INSERT INTO workspace_generations (workspace_id) VALUES (new.workspace_id);
            UPDATE workspaces SET generation = last_insert_rowid() WHERE workspace_id = new.workspace_id;
        END
        """,
        "ALTER TABLE workspaces ADD COLUMN agent_generation INTEGER",  # its number on its agent, as that reported it
        # 0: a workspace that was removed before workspaces were numbered.
        "ALTER TABLE executions ADD COLUMN workspace_generation INTEGER NOT NULL DEFAULT 0",
        """
        UPDATE executions SET workspace_generation = coalesce((
            SELECT w.generation FROM workspaces w
            WHERE w.workspace_id = executions.workspace_id AND w.created_at <= executions.created_at
              AND (w.key_id IS executions.key_id OR executions.key_id IS NULL
                   OR (SELECT k.admin FROM keys k WHERE k.key_id = executions.key_id))), 0)
        """,
        "DROP INDEX executions_active",
        "CREATE INDEX executions_active ON executions (state, workspace_generation, number)"
        " WHERE state IN ('queued', 'running')",
        "CREATE INDEX executions_by_session ON executions (session_id) WHERE session_id IS NOT NULL",
    ):
        db.execute(statement)


@occ()
def m008_letters_apart(db: Database) -> None:
    """Index text of scripts without spaces again, each letter as a word."""
    unspaced = re.compile(
        "[\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3041-\u318f\u31a0-\u31bf"
        "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]"
    )
    rows = db.execute("SELECT rowid, prompt, output FROM search")
    numbers = [(number,) for number, *texts in rows if any(text and unspaced.search(text) for text in texts)]
    db.conn.executemany("DELETE FROM search WHERE rowid = ?", numbers)
    db.conn.executemany("INSERT OR IGNORE INTO unindexed (number) VALUES (?)", numbers)


@occ()
def m009_claude_folders(db: Database) -> None:
    """Reserve the folders' names as the CLI encodes them.

    Names that several workspaces used belong to none.
    """
    # Only executions above `sessions_after` have sessions that can be resumed.
    db.execute("ALTER TABLE workspaces ADD COLUMN sessions_after INTEGER NOT NULL DEFAULT 0")
    db.execute(
        """
        CREATE TABLE claude_folders (
            name       TEXT PRIMARY KEY,  -- of a workspace's folder, with dashes for all but ASCII letters and digits
            generation INTEGER NOT NULL   -- the workspace it is reserved for; 0: none, since several used it
        ) WITHOUT ROWID
        """
    )
    users: dict[str, set[tuple[str, int]]] = {}
    rows = db.execute(
        """
        SELECT workspace_id, generation FROM workspaces
        UNION SELECT workspace_id, workspace_generation FROM executions WHERE session_id IS NOT NULL
        """
    ).fetchall()
    for workspace_id, generation in rows:
        users.setdefault(re.sub("[^A-Za-z0-9]", "-", workspace_id), set()).add((workspace_id, generation))
    for name, used_by in users.items():
        only = next(iter(used_by))[1] if len(used_by) == 1 else 0
        db.execute(
            "INSERT INTO claude_folders (name, generation) VALUES (:name, :generation)",
            {"name": name, "generation": only},
        )


@occ()
def m010_single_top_folders(db: Database) -> None:
    """Store whether an upload asks to leave out its single top folder, and its name."""
    db.execute("ALTER TABLE workspace_jobs ADD COLUMN strip_root INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE workspaces ADD COLUMN stripped TEXT")


@occ()
def m011_random_delivery_ids(db: Database) -> None:
    """Give each delivery a random id.

    A hub restored from a copy then does not give it to another one.
    """
    for statement in (
        "ALTER TABLE deliveries ADD COLUMN delivery_id TEXT",
        "UPDATE deliveries SET delivery_id = 'delivery-' || number",
        "DROP TRIGGER executions_delivered",
        """
        CREATE TRIGGER executions_delivered AFTER UPDATE OF finished_at ON executions
        WHEN new.finished_at IS NOT NULL AND old.finished_at IS NULL
        BEGIN
            INSERT INTO deliveries (webhook_id, execution, state, next_at, created_at, delivery_id)
            SELECT webhook_id, new.number, 'waiting', new.finished_at, new.finished_at,
                'delivery-' || lower(hex(randomblob(12)))
            FROM webhooks WHERE key_id IS NULL OR key_id = new.key_id;
        END
        """,
    ):
        db.execute(statement)


@occ()
def m012_expected_generations(db: Database) -> None:
    # The number that the workspace of an upload must have; 0: there must be none; NULL: any.
    db.execute("ALTER TABLE workspace_jobs ADD COLUMN expected_generation INTEGER")


@occ()
def m013_projects(db: Database) -> None:
    """Add projects: workspaces that are folders of the machine itself.

    On a hub, those that its machines reported.
    """
    for statement in (
        # upload: a folder that OCC makes from a zip; folder: a person's, in which OCC only runs
        "ALTER TABLE workspaces ADD COLUMN source TEXT NOT NULL DEFAULT 'upload'"
        " CHECK (source IN ('upload', 'folder'))",
        "ALTER TABLE workspaces ADD COLUMN trusted INTEGER NOT NULL DEFAULT 0",  # a project's settings and hooks count
        """
        CREATE TABLE project_keys (
            generation INTEGER NOT NULL,  -- of the project
            name       TEXT NOT NULL,     -- of a hub's key that may use it, besides the admins'
            PRIMARY KEY (generation, name)
        ) WITHOUT ROWID
        """,
        "ALTER TABLE agents ADD COLUMN projects TEXT",  # JSON, as the machine reported them last
    ):
        db.execute(statement)


@occ()
def m014_machines(db: Database) -> None:
    """Know a machine by its proof."""
    for statement in (
        "ALTER TABLE agents ADD COLUMN machine_id TEXT",
        "ALTER TABLE agents ADD COLUMN verifier TEXT",  # not hashed: the hub checks proofs with it
        "ALTER TABLE agents ADD COLUMN instance TEXT",  # the start of its daemon that registered
        "ALTER TABLE agents ADD COLUMN copied_at TEXT",
        "CREATE UNIQUE INDEX agents_by_machine ON agents (machine_id) WHERE machine_id IS NOT NULL",
    ):
        db.execute(statement)


@occ()
def m015_origins(db: Database) -> None:
    # JSON: the hub, its key and its upload that a workspace on an agent came from.
    for table in ("workspaces", "workspace_jobs"):
        db.execute(f"ALTER TABLE {table} ADD COLUMN origin TEXT")


@occ()
def m016_owners(db: Database) -> None:
    """Give each key an owner: so far every key was a person of its own."""
    for statement in (
        """
        CREATE TABLE owners (
            owner_id   TEXT PRIMARY KEY,
            name       TEXT NOT NULL UNIQUE,
            created_at TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        "ALTER TABLE keys ADD COLUMN owner_id TEXT REFERENCES owners (owner_id)",
        "ALTER TABLE keys ADD COLUMN viewer INTEGER NOT NULL DEFAULT 0",  # reads only
        "ALTER TABLE workspaces ADD COLUMN owner_id TEXT",
        "ALTER TABLE workspace_jobs ADD COLUMN owner_id TEXT",
        "ALTER TABLE executions ADD COLUMN owner_id TEXT",
        "ALTER TABLE webhooks ADD COLUMN owner_id TEXT",
        # Names are unique among the keys that are not revoked; a revoked one's owner has its id in the name.
        """
        INSERT INTO owners (owner_id, name, created_at)
        SELECT replace(key_id, 'key-', 'owner-'), iif(revoked_at IS NULL, name, name || ' (' || key_id || ')'),
            created_at
        FROM keys
        """,
        "UPDATE keys SET owner_id = replace(key_id, 'key-', 'owner-')",
        *(
            f"UPDATE {table} SET owner_id = replace(key_id, 'key-', 'owner-') WHERE key_id IS NOT NULL"  # noqa: S608 - literals
            for table in ("workspaces", "workspace_jobs", "executions", "webhooks")
        ),
        "DROP INDEX executions_by_key",
        "CREATE INDEX executions_by_owner ON executions (owner_id, number) WHERE owner_id IS NOT NULL",
        "DROP TRIGGER executions_delivered",
        """
        CREATE TRIGGER executions_delivered AFTER UPDATE OF finished_at ON executions
        WHEN new.finished_at IS NOT NULL AND old.finished_at IS NULL
        BEGIN
            INSERT INTO deliveries (webhook_id, execution, state, next_at, created_at, delivery_id)
            SELECT webhook_id, new.number, 'waiting', new.finished_at, new.finished_at,
                'delivery-' || lower(hex(randomblob(12)))
            FROM webhooks WHERE key_id IS NULL OR owner_id = new.owner_id;
        END
        """,
    ):
        db.execute(statement)


@occ()
def m017_changes(db: Database) -> None:
    """Store the snapshots before and after each execution, and restores."""
    for statement in (
        "ALTER TABLE workspaces ADD COLUMN snapshot TEXT",  # the tree of the latest
        "ALTER TABLE executions ADD COLUMN start_tree TEXT",
        "ALTER TABLE executions ADD COLUMN end_tree TEXT",
        "ALTER TABLE executions ADD COLUMN changes TEXT",  # JSON: files, additions, deletions, truncated, exact
        "ALTER TABLE executions ADD COLUMN changes_reason TEXT",  # why `changes` is NULL
        # 1 from the snapshot before an execution until the one after it is stored or given up, which may be later
        # than the final event.
        "ALTER TABLE executions ADD COLUMN holds_workspace INTEGER",
        "CREATE INDEX executions_holding ON executions (workspace_generation) WHERE holds_workspace = 1",
        "CREATE INDEX executions_with_snapshots ON executions (workspace_generation) WHERE start_tree IS NOT NULL",
        """
        CREATE TABLE restores (
            number               INTEGER PRIMARY KEY AUTOINCREMENT,
            restore_id           TEXT NOT NULL UNIQUE,
            workspace_generation INTEGER NOT NULL,
            execution_id         TEXT NOT NULL,  -- the execution or the restore whose changes are made or undone
            state                TEXT NOT NULL,  -- running, succeeded, failed
            from_tree            TEXT NOT NULL,  -- the changes are those between these two snapshots
            to_tree              TEXT NOT NULL,
            base                 TEXT,           -- the snapshot before it; NULL until it is taken
            result               TEXT,           -- the snapshot after it
            owner_boot_id        TEXT NOT NULL,
            owner_pid            INTEGER NOT NULL,
            owner_start          INTEGER NOT NULL,
            created_at           TEXT NOT NULL,
            finished_at          TEXT
        )
        """,
        "CREATE INDEX restores_by_workspace ON restores (workspace_generation)",
        # Workspaces that nothing else may use now, and why.
        """
        CREATE VIEW held_workspaces AS
            SELECT workspace_generation, execution_id, 'runs' AS reason FROM executions WHERE state = 'running'
            UNION ALL
            SELECT workspace_generation, execution_id, 'ends' FROM executions WHERE holds_workspace = 1
            UNION ALL
            SELECT workspace_generation, execution_id, 'restores' FROM restores WHERE state = 'running'
        """,
    ):
        db.execute(statement)


@occ()
def m018_approvals(db: Database) -> None:
    """Add an execution's permissions, and the tool calls that a person decides on."""
    for statement in (
        "ALTER TABLE executions ADD COLUMN permissions TEXT NOT NULL DEFAULT 'edit'",
        """
        CREATE TABLE approvals (
            approval_id  TEXT PRIMARY KEY,
            execution    INTEGER NOT NULL REFERENCES executions (number),
            kind         TEXT NOT NULL CHECK (kind IN ('tool', 'question', 'plan')),
            tool         TEXT NOT NULL,
            input        TEXT NOT NULL,  -- JSON, without the secrets of the environment
            input_hash   TEXT NOT NULL,  -- SHA-256 of the whole input
            redacted     INTEGER NOT NULL,
            reason       TEXT,
            subagent     TEXT,
            asked_at     TEXT NOT NULL,
            expires_at   TEXT NOT NULL,
            state        TEXT NOT NULL
                         CHECK (state IN ('open', 'allowed', 'denied', 'answered', 'expired', 'withdrawn')),
            message      TEXT,
            answer       TEXT,           -- JSON, as the person gave it
            actor        TEXT,
            decided_at   TEXT,
            delivered_at TEXT            -- when the answer was about to be given to Claude Code
        ) WITHOUT ROWID
        """,
        "CREATE INDEX approvals_open ON approvals (asked_at) WHERE state = 'open'",
        "CREATE INDEX approvals_of ON approvals (execution)",
    ):
        db.execute(statement)


@occ()
def m019_updates(db: Database) -> None:
    """Add jobs that change a workspace.

    They have the snapshot that they change, and a JSON list of the paths to delete.
    """
    db.execute("ALTER TABLE workspace_jobs ADD COLUMN base TEXT")
    db.execute("ALTER TABLE workspace_jobs ADD COLUMN deletions TEXT")


@occ()
def m020_fetched_changes(db: Database) -> None:
    """Keep on a hub what executions changed, as their machines listed it."""
    for statement in (
        """
        CREATE TABLE fetched_changes (
            execution INTEGER PRIMARY KEY,  -- its number
            changes   BLOB NOT NULL,        -- JSON, compressed
            patch     BLOB                  -- compressed; NULL for one over the limit
        )
        """,
        "CREATE INDEX executions_unfetched ON executions (number) WHERE changes_reason = 'pending'",
    ):
        db.execute(statement)


@occ()
def m021_conversations(db: Database) -> None:
    """Group the executions of each Claude session as a conversation.

    Its id is that of its first execution.
    """
    for statement in (
        "ALTER TABLE executions ADD COLUMN conversation TEXT",
        "ALTER TABLE executions ADD COLUMN continues INTEGER",  # the number of the execution before it
        """
        UPDATE executions SET conversation = coalesce((
            SELECT f.execution_id FROM executions f
            WHERE f.session_id = executions.session_id AND f.workspace_generation = executions.workspace_generation
            ORDER BY f.number LIMIT 1), execution_id)
        """,
        "CREATE INDEX executions_by_conversation ON executions (conversation, number)",
    ):
        db.execute(statement)


@occ()
def m022_webhook_events(db: Database) -> None:
    """Let a webhook choose its events.

    Existing webhooks receive the ends of executions alone.
    """
    for statement in (
        "ALTER TABLE webhooks ADD COLUMN events TEXT NOT NULL DEFAULT 'execution.finished'",  # with spaces between
        "DROP TRIGGER executions_delivered",
        "DROP INDEX deliveries_waiting",
        "ALTER TABLE deliveries RENAME TO former_deliveries",
        """
        CREATE TABLE deliveries (
            number      INTEGER PRIMARY KEY AUTOINCREMENT,
            delivery_id TEXT NOT NULL,
            webhook_id  TEXT NOT NULL,
            event       TEXT NOT NULL,
            execution   INTEGER REFERENCES executions (number),  -- NULL for a test
            approval_id TEXT,
            once        TEXT UNIQUE,         -- a second row of the same webhook, event and cause is not made
            state       TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'failed', 'dropped')),
            attempts    INTEGER NOT NULL DEFAULT 0,
            next_at     TEXT,                -- when it is tried again
            status      INTEGER,             -- the last answer's HTTP status
            problem     TEXT,
            created_at  TEXT NOT NULL,
            finished_at TEXT
        )
        """,
        """
        INSERT INTO deliveries (number, delivery_id, webhook_id, event, execution, state, attempts, next_at, status,
            problem, created_at, finished_at)
        SELECT number, coalesce(delivery_id, 'delivery-' || number), webhook_id, 'execution.finished', execution, state,
            attempts, next_at, status, problem, created_at, finished_at
        FROM former_deliveries
        """,
        "DROP TABLE former_deliveries",
        "CREATE INDEX deliveries_waiting ON deliveries (next_at) WHERE state = 'waiting'",
        *(_delivering(*parts) for parts in _WEBHOOK_EVENTS),
    ):
        db.execute(statement)


# The trigger of each event: its name, its table and moment, and the number of its execution and its approval there.
_WEBHOOK_EVENTS = (
    (
        *("execution.started", "UPDATE OF started_at ON executions"),
        *("new.started_at IS NOT NULL AND old.started_at IS NULL", "new.number", "NULL"),
    ),
    (
        *("execution.finished", "UPDATE OF finished_at ON executions"),
        *("new.finished_at IS NOT NULL AND old.finished_at IS NULL", "new.number", "NULL"),
    ),
    (
        *("execution.needs_approval", "INSERT ON approvals", "new.state = 'open'"),
        *("new.execution", "new.approval_id"),
    ),
    (
        *("execution.approved", "UPDATE OF state ON approvals"),
        "old.state = 'open' AND new.state IN ('allowed', 'denied', 'answered')",
        *("new.execution", "new.approval_id"),
    ),
)


def _delivering(event: str, moment: str, condition: str, execution: str, approval: str) -> str:
    """Return the trigger that makes the deliveries of one event, each once."""
    once = f"w.webhook_id || ' {event} ' || {execution} || ' ' || coalesce({approval}, '')"
    return f"""
        CREATE TRIGGER delivers_{event.partition(".")[2]} AFTER {moment} WHEN {condition}
        BEGIN
            INSERT INTO deliveries (webhook_id, event, execution, approval_id, once, state, next_at, created_at,
                delivery_id)
            SELECT w.webhook_id, '{event}', x.number, {approval}, {once}, 'waiting',
                strftime('%Y-%m-%dT%H:%M:%fZ'), strftime('%Y-%m-%dT%H:%M:%fZ'),
                'delivery-' || lower(hex(randomblob(12)))
            FROM webhooks w JOIN executions x ON x.number = {execution}
            WHERE (w.key_id IS NULL OR w.owner_id = x.owner_id)
                AND instr(' ' || w.events || ' ', ' {event} ') > 0
                AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.once = {once});
        END
        """  # noqa: S608 - literals


@occ()
def m023_follow_ups(db: Database) -> None:
    """Let executions that continue a conversation be moved and paused while they wait."""
    for statement in (
        "ALTER TABLE executions ADD COLUMN place INTEGER",  # in the line; NULL: as its number
        "ALTER TABLE executions ADD COLUMN paused TEXT",  # why it waits for a person: failed (a turn did), person
        "CREATE INDEX executions_line ON executions (coalesce(place, number)) WHERE state = 'queued'",
    ):
        db.execute(statement)


@occ()
def m024_hub_approvals(db: Database) -> None:
    """Let a hub store its machines' approvals and answers, and their ceilings."""
    for statement in (
        "ALTER TABLE approvals ADD COLUMN surface TEXT",  # where the person answered
        "ALTER TABLE approvals ADD COLUMN pending TEXT",  # JSON: the answer that the machine does not have yet
        "ALTER TABLE approvals ADD COLUMN problem TEXT",  # JSON: why the last answer was not taken
        "ALTER TABLE approvals ADD COLUMN truncated INTEGER NOT NULL DEFAULT 0",  # the input is cut
        "CREATE INDEX approvals_pending ON approvals (asked_at) WHERE state = 'open' AND pending IS NOT NULL",
        "ALTER TABLE agents ADD COLUMN capabilities TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE agents ADD COLUMN permissions TEXT",  # the most that it allows
    ):
        db.execute(statement)


@occ()
def m025_sessions(db: Database) -> None:
    """Name the logins of the hub's pages, and add the one-time codes that open them."""
    for statement in (
        "ALTER TABLE logins ADD COLUMN session_id TEXT",
        "ALTER TABLE logins ADD COLUMN device TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE logins ADD COLUMN used_at TEXT",
        "UPDATE logins SET session_id = 'session-' || lower(hex(randomblob(6))), used_at = created_at",
        "CREATE UNIQUE INDEX logins_by_session ON logins (session_id)",
        # The device of a session that a one-time code opened: nobody knows the secret of such a key.
        "ALTER TABLE keys ADD COLUMN device TEXT",
        "ALTER TABLE keys ADD COLUMN paired_by TEXT",  # the key that made the code; NULL: the operator
        """
        CREATE TABLE pairings (
            hash       TEXT PRIMARY KEY,  -- SHA-256 of the code
            owner_id   TEXT NOT NULL REFERENCES owners (owner_id),
            role       TEXT NOT NULL CHECK (role IN ('owner', 'viewer', 'admin')),
            paired_by  TEXT,
            created_at TEXT NOT NULL,
            expires_at TEXT NOT NULL
        ) WITHOUT ROWID
        """,
    ):
        db.execute(statement)


@occ()
def m026_notifications(db: Database) -> None:
    """Add the channels of owners' notifications, and the pages that are being viewed."""
    for statement in (
        "ALTER TABLE executions ADD COLUMN notify INTEGER",  # 1: its end is notified of, however short it was
        """
        CREATE TABLE channels (
            channel_id TEXT PRIMARY KEY,
            kind       TEXT NOT NULL,
            name       TEXT NOT NULL,
            address    TEXT NOT NULL,   -- JSON, by the kind; may hold secrets
            classes    TEXT NOT NULL,   -- with spaces between
            owner_id   TEXT,            -- whose executions; NULL: everybody's
            created_at TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE seen_pages (
            page      TEXT PRIMARY KEY,
            owner_id  TEXT NOT NULL,
            execution INTEGER NOT NULL,
            until     TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        _notifying(
            *("asks", "INSERT ON approvals", "new.state = 'open'", "notify.needs_you"),
            *("new.execution", "new.approval_id", _OF_NEEDS),
        ),
        _notifying(
            *("fails_to_log_in", "UPDATE OF finished_at ON executions"),
            "new.finished_at IS NOT NULL AND old.finished_at IS NULL AND new.error_code = 'CLAUDE_AUTH'",
            *("notify.needs_you", "new.number", "NULL", _OF_NEEDS),
        ),
        _notifying(
            *("ends", "UPDATE OF finished_at ON executions"),
            "new.finished_at IS NOT NULL AND old.finished_at IS NULL AND new.error_code IS NOT 'CLAUDE_AUTH'",
            *("notify.ended", "new.number", "NULL"),
            """
            (new.notify = 1 OR (instr(c.classes, 'ended') > 0 AND new.state != 'cancelled'
                AND julianday(new.finished_at) - julianday(new.created_at) >= 60.0 / 86400))
            """,
        ),
    ):
        db.execute(statement)


_OF_NEEDS = "instr(c.classes, 'needs-you') > 0"


def _notifying(name: str, moment: str, condition: str, event: str, execution: str, approval: str, chosen: str) -> str:
    """Return a trigger that makes notifications for an execution's owner.

    One for each channel, each once.
    """
    once = f"c.channel_id || ' {event} ' || {execution} || ' ' || coalesce({approval}, '')"
    return f"""
        CREATE TRIGGER notifies_{name} AFTER {moment} WHEN {condition}
        BEGIN
            INSERT INTO deliveries (webhook_id, event, execution, approval_id, once, state, next_at, created_at,
                delivery_id)
            SELECT c.channel_id, '{event}', x.number, {approval}, {once}, 'waiting',
                strftime('%Y-%m-%dT%H:%M:%fZ'), strftime('%Y-%m-%dT%H:%M:%fZ'),
                'delivery-' || lower(hex(randomblob(12)))
            FROM channels c JOIN executions x ON x.number = {execution}
            WHERE (c.owner_id IS NULL OR c.owner_id = x.owner_id) AND {chosen}
                AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.once = {once});
        END
        """  # noqa: S608 - literals


@occ()
def m027_rules(db: Database) -> None:
    """Add the rules on tool calls that people set; those of the operator are settings."""
    for statement in (
        """
        CREATE TABLE rules (
            rule_id              TEXT PRIMARY KEY,
            scope                TEXT NOT NULL
                                 CHECK (scope IN ('execution', 'conversation', 'workspace', 'project', 'agent')),
            workspace_generation INTEGER,  -- of all scopes but agent
            conversation         TEXT,     -- of the scope conversation
            execution            INTEGER,  -- of the scope execution: its number
            owner_id             TEXT,     -- the owner whose executions it is for
            decision             TEXT NOT NULL CHECK (decision IN ('allow', 'deny', 'ask')),
            tool                 TEXT NOT NULL,
            pattern              TEXT,     -- NULL: all calls of the tool
            actor                TEXT NOT NULL,
            created_at           TEXT NOT NULL
        )
        """,
        "CREATE INDEX rules_by_workspace ON rules (workspace_generation)",
        """
        CREATE TRIGGER workspaces_without_rules AFTER DELETE ON workspaces
        BEGIN
            DELETE FROM rules WHERE workspace_generation = old.generation;
        END
        """,
    ):
        db.execute(statement)


@occ()
def m028_inputs(db: Database) -> None:
    """Keep the texts that people send to executions that were accepted."""
    for statement in (
        """
        CREATE TABLE inputs (
            number     INTEGER PRIMARY KEY,
            execution  INTEGER NOT NULL REFERENCES executions (number),
            input_id   TEXT NOT NULL,  -- an id of the sender's
            text       TEXT NOT NULL,
            wanted     TEXT NOT NULL CHECK (wanted IN ('steer', 'queue')),
            state      TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'delivered', 'queued', 'unknown')),
            follow_up  TEXT,           -- the id of the execution that it became
            reason     TEXT,
            key_id     TEXT,
            owner_id   TEXT,
            created_at TEXT NOT NULL,
            sent_at    TEXT,           -- when it was about to be given to Claude Code
            settled_at TEXT,
            UNIQUE (execution, input_id)
        )
        """,
        "CREATE INDEX inputs_open ON inputs (execution) WHERE state IN ('waiting', 'sent')",
    ):
        db.execute(statement)


@occ()
def m029_attachments(db: Database) -> None:
    """Keep the images and files that come with prompts."""
    for statement in (
        "ALTER TABLE executions ADD COLUMN attachments TEXT",  # JSON: their names, kinds and sizes
        """
        CREATE TABLE attachments (
            execution  INTEGER NOT NULL REFERENCES executions (number),
            position   INTEGER NOT NULL,
            name       TEXT NOT NULL,
            media_type TEXT NOT NULL,
            data       BLOB NOT NULL,
            PRIMARY KEY (execution, position)
        )
        """,
    ):
        db.execute(statement)


@occ()
def m030_parking(db: Database) -> None:
    """Let executions be parked.

    They wait for a person without a process, and keep their workspace.
    """
    states = "IN ('queued', 'running', 'succeeded'"
    # The one change that ALTER TABLE cannot make: every value that the old CHECK allows, the new one allows, too.
    db.execute("PRAGMA writable_schema = ON")
    changed = db.execute(
        """
        UPDATE sqlite_master SET sql = replace(sql, :states, :more)
        WHERE type = 'table' AND name = 'executions' AND instr(sql, :states)
        """,
        {"states": states, "more": states.replace("'running'", "'running', 'parked'")},
    ).rowcount
    version = db.execute("PRAGMA schema_version").fetchone()[0]
    db.execute(f"PRAGMA schema_version = {version + 1}")
    db.execute("PRAGMA writable_schema = RESET")
    if changed != 1:
        raise ValueError("the table executions is not as an earlier version made it")
    for statement in (
        "ALTER TABLE executions ADD COLUMN parked_at TEXT",  # NULL unless it is parked
        "ALTER TABLE executions ADD COLUMN parked_seconds REAL NOT NULL DEFAULT 0",  # all times it was parked before
        "ALTER TABLE executions ADD COLUMN approval_seconds REAL",  # for a person to answer; NULL: the agent's setting
        "CREATE INDEX executions_parked ON executions (workspace_generation, number) WHERE state = 'parked'",
        """
        CREATE TABLE parkings (
            execution   INTEGER PRIMARY KEY REFERENCES executions (number),
            approval_id TEXT,           -- that of the call that waits; NULL once it is decided and delivered
            tool_use_id TEXT NOT NULL,  -- the call, as Claude Code names it
            spent       TEXT NOT NULL   -- JSON: seconds, turns, cost and tokens of the processes so far
        )
        """,
        "DROP VIEW held_workspaces",
        # Workspaces that nothing else may use now, and why.
        """
        CREATE VIEW held_workspaces AS
            SELECT workspace_generation, execution_id, 'runs' AS reason FROM executions WHERE state = 'running'
            UNION ALL
            SELECT workspace_generation, execution_id, 'parked' FROM executions WHERE state = 'parked'
            UNION ALL
            SELECT workspace_generation, execution_id, 'ends' FROM executions
                WHERE holds_workspace = 1 AND state != 'parked'
            UNION ALL
            SELECT workspace_generation, execution_id, 'restores' FROM restores WHERE state = 'running'
        """,
    ):
        db.execute(statement)


@occ()
def m031_parked_since(db: Database) -> None:
    """Count the time for an answer by a clock that no one sets, within one boot."""
    for statement in (
        "ALTER TABLE parkings ADD COLUMN seconds REAL",  # for a person to answer
        "ALTER TABLE parkings ADD COLUMN boot_id TEXT",  # the boot in which it was parked last
        "ALTER TABLE parkings ADD COLUMN since_boot REAL",  # when that was, in seconds since that boot
    ):
        db.execute(statement)


@occ()
def m032_seen_failures(db: Database) -> None:
    """Record when its owner has seen a failed execution.

    Those that failed before count as seen.
    """
    for statement in (
        "ALTER TABLE executions ADD COLUMN seen_at TEXT",
        "UPDATE executions SET seen_at = finished_at WHERE state = 'failed'",
        "CREATE INDEX executions_unseen ON executions (number) WHERE state = 'failed' AND seen_at IS NULL",
    ):
        db.execute(statement)


@occ()
def m033_slack(db: Database) -> None:
    """Add Slack's messages and users, and the places where a channel's runs go."""
    for statement in (
        """
        CREATE TABLE slack_inbox (
            number      INTEGER PRIMARY KEY AUTOINCREMENT,
            key         TEXT NOT NULL UNIQUE,  -- by which a payload that comes again is known
            kind        TEXT NOT NULL,
            content     TEXT NOT NULL,         -- JSON; empty once it was handled
            received_at TEXT NOT NULL,
            handled_at  TEXT,
            problem     TEXT
        )
        """,
        "CREATE INDEX slack_unhandled ON slack_inbox (number) WHERE handled_at IS NULL",
        """
        CREATE TABLE slack_people (
            team      TEXT NOT NULL,
            user      TEXT NOT NULL,
            key_id    TEXT NOT NULL,
            linked_at TEXT NOT NULL,
            PRIMARY KEY (team, user)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE slack_codes (
            hash       TEXT PRIMARY KEY,       -- SHA-256 of the code
            team       TEXT NOT NULL,
            user       TEXT NOT NULL,
            user_name  TEXT NOT NULL,
            expires_at TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE slack_places (
            team         TEXT NOT NULL,
            channel      TEXT NOT NULL,
            owner_id     TEXT NOT NULL,
            workspace_id TEXT NOT NULL,
            PRIMARY KEY (team, channel, owner_id)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE slack_threads (
            team     TEXT NOT NULL,
            channel  TEXT NOT NULL,
            thread   TEXT NOT NULL,            -- the ts of its first message
            owner_id TEXT NOT NULL,
            private  INTEGER NOT NULL,
            PRIMARY KEY (team, channel, thread)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE slack_messages (
            number      INTEGER PRIMARY KEY AUTOINCREMENT,
            message_id  TEXT NOT NULL UNIQUE,  -- in the metadata of the message
            once        TEXT NOT NULL UNIQUE,  -- its cause
            channel     TEXT NOT NULL,
            thread      TEXT NOT NULL,
            ts          TEXT,                  -- Slack's id of it
            kind        TEXT NOT NULL,
            execution   INTEGER,
            approval_id TEXT,
            only_for    TEXT,                  -- the one Slack user who sees it
            content     TEXT,                  -- JSON that it is to show
            wanted      TEXT,                  -- SHA-256 of that
            shown       TEXT,                  -- and of the content that it shows
            final       INTEGER NOT NULL DEFAULT 0,
            gone        INTEGER NOT NULL DEFAULT 0,
            reposted    INTEGER NOT NULL DEFAULT 0,
            tries       INTEGER NOT NULL DEFAULT 0,
            not_before  TEXT,
            problem     TEXT,
            created_at  TEXT NOT NULL
        )
        """,
        "CREATE INDEX slack_unfinished ON slack_messages (kind, number) WHERE final = 0 AND gone = 0",
        "CREATE INDEX slack_due ON slack_messages (number) WHERE gone = 0 AND shown IS NOT wanted",
        "CREATE INDEX slack_in_thread ON slack_messages (channel, thread)",
    ):
        db.execute(statement)


@occ()
def m034_branches(db: Database) -> None:
    """Let an execution fork a conversation, and return to one of its turns."""
    for statement in (
        "ALTER TABLE executions ADD COLUMN fork INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE executions ADD COLUMN rewind_to INTEGER",  # the number of the turn that it continues after
        "ALTER TABLE executions ADD COLUMN last_message TEXT",  # the CLI's id of the model's last message in it
    ):
        db.execute(statement)


@occ()
def m035_inputs_without_follow_up(db: Database) -> None:
    """Let a hub send a text of which the machine makes no follow-up.

    The hub makes its own.
    """
    for statement in (
        "ALTER TABLE inputs RENAME TO former_inputs",
        "DROP INDEX inputs_open",
        """
        CREATE TABLE inputs (
            number     INTEGER PRIMARY KEY,
            execution  INTEGER NOT NULL REFERENCES executions (number),
            input_id   TEXT NOT NULL,  -- an id of the sender's
            text       TEXT NOT NULL,
            wanted     TEXT NOT NULL CHECK (wanted IN ('steer', 'queue')),
            state      TEXT NOT NULL
                       CHECK (state IN ('waiting', 'sent', 'delivered', 'queued', 'unsent', 'unknown')),
            follow_up  TEXT,           -- the id of the execution that it became
            reason     TEXT,
            key_id     TEXT,
            owner_id   TEXT,
            created_at TEXT NOT NULL,
            sent_at    TEXT,           -- when it was about to be given to Claude Code, on a hub to the machine
            settled_at TEXT,
            fallback   INTEGER NOT NULL DEFAULT 1,  -- it becomes a follow-up if it cannot be sent
            UNIQUE (execution, input_id)
        )
        """,
        """
        INSERT INTO inputs (number, execution, input_id, text, wanted, state, follow_up, reason, key_id, owner_id,
            created_at, sent_at, settled_at)
        SELECT number, execution, input_id, text, wanted, state, follow_up, reason, key_id, owner_id, created_at,
            sent_at, settled_at
        FROM former_inputs
        """,
        "DROP TABLE former_inputs",
        "CREATE INDEX inputs_open ON inputs (execution) WHERE state IN ('waiting', 'sent')",
    ):
        db.execute(statement)


@occ()
def m036_workspace_ceilings(db: Database) -> None:
    """Let the operator limit the permissions of runs in one workspace or project."""
    db.execute("ALTER TABLE workspaces ADD COLUMN permissions TEXT")  # NULL: all that the machine allows


@occ()
def m037_process_marks(db: Database) -> None:
    """Map the marks of processes that were started ahead to their executions."""
    for statement in (
        """
        CREATE TABLE process_marks (
            mark      TEXT PRIMARY KEY,
            execution INTEGER NOT NULL REFERENCES executions (number)
        )
        """,
        "CREATE INDEX process_marks_of_execution ON process_marks (execution)",
    ):
        db.execute(statement)


@occ()
def m038_local_sharing(db: Database) -> None:
    """Mark the executions that a machine shares with its hub, on both sides."""
    for statement in (
        # On a machine pending, announced or refused; on a hub received; NULL: not shared.
        "ALTER TABLE executions ADD COLUMN local_sharing TEXT",
        "CREATE INDEX executions_to_announce ON executions (number) WHERE local_sharing = 'pending'",
    ):
        db.execute(statement)


@occ()
def m039_problems_of_machines(db: Database) -> None:
    """Keep the reasons why a machine is degraded, as its last heartbeat has them."""
    db.execute("ALTER TABLE agents ADD COLUMN problems TEXT NOT NULL DEFAULT '[]'")


@occ()
def m040_unnamed_permissions(db: Database) -> None:
    """Distinguish permissions that a request named from the default ones."""
    db.execute("ALTER TABLE executions ADD COLUMN permissions_named INTEGER NOT NULL DEFAULT 1")


@occ()
def m041_held_calls(db: Database) -> None:
    """Name the call that a process holds.

    Its execution may then be parked if the process dies.
    """
    db.execute("ALTER TABLE parkings ADD COLUMN held INTEGER NOT NULL DEFAULT 0")


@occ()
def m042_kept_processes(db: Database) -> None:
    """Note the processes that are kept for the next turn of a conversation."""
    db.execute(
        """
        CREATE TABLE kept_processes (
            generation  INTEGER PRIMARY KEY,  -- of the workspace
            session_id  TEXT NOT NULL,
            mark        TEXT NOT NULL,
            boot_id     TEXT NOT NULL,
            pid         INTEGER NOT NULL,
            start       INTEGER NOT NULL,
            owner_pid   INTEGER NOT NULL,     -- its worker
            owner_start INTEGER NOT NULL,
            kept_at     REAL NOT NULL,        -- in seconds since the boot
            revoked     INTEGER NOT NULL DEFAULT 0
        )
        """
    )
