"""Threads in Slack: their owners, their runs and how they begin, with all SQL."""

from __future__ import annotations

from dataclasses import dataclass

from occ_app.database.database import Database
from occ_app.slack import outbox
from occ_app.slack.outbox import Content, Message

DIRECT = "D"  # prefix of the ids of direct messages' channels
_OPENING = "opening "  # and a run's number: the provisional thread until its first message is posted


@dataclass(frozen=True)
class Thread:
    """A row of `slack_threads`.

    It has the owner of the conversation, and whether only a few people see it.
    """

    team: str
    channel: str
    thread: str
    owner_id: str
    private: bool


def begin(db: Database, thread: Thread, execution: int) -> bool:
    """Show a run in a thread, which belongs to the owner of its first run.

    Returns False when the run is shown already.
    """
    with db.write() as connection:
        connection.execute(
            """
            INSERT INTO slack_threads (team, channel, thread, owner_id, private)
            VALUES (:team, :channel, :thread, :owner_id, :private) ON CONFLICT DO NOTHING
            """,
            vars(thread),
        )
        return outbox.insert(
            connection, thread.channel, thread.thread, outbox.RUN, f"run {execution}", execution=execution
        )


def open_thread(db: Database, thread: Thread, execution: int, head: Content, user: str) -> bool:
    """Show a run in a new thread that begins with the app's message `head`.

    Returns False when the run is shown already.
    """
    pending = f"{_OPENING}{execution}"
    with db.write() as connection:
        connection.execute(
            """
            INSERT INTO slack_threads (team, channel, thread, owner_id, private)
            VALUES (:team, :channel, :thread, :owner_id, :private) ON CONFLICT DO NOTHING
            """,
            {**vars(thread), "thread": pending},
        )
        made = outbox.insert(
            connection, thread.channel, pending, outbox.OPENING, pending, execution=execution, only_for=user
        )
        if made:
            outbox.set_content(connection, pending, head)
            outbox.insert(connection, thread.channel, pending, outbox.RUN, f"run {execution}", execution=execution)
    return made


def opened(db: Database, message: Message, ts: str) -> None:
    """Record that the first message of a thread was posted.

    Messages that waited for it are moved to the thread of its `ts`.
    """
    names = {"pending": message.thread, "channel": message.channel, "ts": ts}
    with db.write() as connection:
        for table in ("slack_threads", "slack_messages"):
            connection.execute(
                f"UPDATE {table} SET thread = :ts WHERE channel = :channel AND thread = :pending",  # noqa: S608 - literals
                names,
            )


def move(db: Database, message: Message, channel: str) -> None:
    """Move a message for one user to that user's direct messages, `channel`.

    The first message of a thread takes its thread with it.
    """
    names = {"number": message.number, "thread": message.thread, "former": message.channel, "channel": channel}
    with db.write() as connection:
        if message.kind != outbox.OPENING:
            connection.execute(
                """
                UPDATE slack_messages SET channel = :channel, thread = '', only_for = NULL, tries = 0
                WHERE number = :number
                """,
                names,
            )
            return
        connection.execute(
            """
            UPDATE slack_threads SET channel = :channel, private = 1 WHERE channel = :former AND thread = :thread
            """,
            names,
        )
        connection.execute(
            """
            UPDATE slack_messages SET channel = :channel, tries = 0 WHERE channel = :former AND thread = :thread
            """,
            names,
        )


def thread_of(db: Database, team: str, channel: str, thread: str) -> Thread | None:
    """Return the conversation in a thread; None for a thread without one."""
    with db.read() as connection:
        row = connection.execute(
            "SELECT * FROM slack_threads WHERE team = :team AND channel = :channel AND thread = :thread",
            {"team": team, "channel": channel, "thread": thread},
        ).fetchone()
    return None if row is None else Thread(**{**dict(row), "private": bool(row["private"])})


def runs_in(db: Database, channel: str, thread: str) -> list[str]:
    """Return the ids of the runs in a thread, oldest first."""
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT x.execution_id FROM slack_messages m JOIN executions x ON x.number = m.execution
            WHERE m.channel = :channel AND m.thread = :thread AND m.kind = 'run' ORDER BY x.number
            """,
            {"channel": channel, "thread": thread},
        ).fetchall()
    return [row["execution_id"] for row in rows]
