"""The hub's messages in Slack, with all SQL on them.

Each message is a row with its wanted content and the content that Slack shows. A run has one message, which is
updated. A row is inserted before its message is posted and has its own id, which the message carries in its metadata:
a process that was killed while posting can find the message in Slack.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from occ_app.database.database import Database
from occ_app.system.timestamps import iso_now

RUN, ANSWER, APPROVAL, NOTICE, DIFF, OPENING = "run", "answer", "approval", "notice", "diff", "opening"


@dataclass(frozen=True)
class Content:
    """The content of a message: its notification's text, and its blocks."""

    text: str
    blocks: tuple[Mapping[str, Any], ...] = ()

    @property
    def json(self) -> str:
        return json.dumps({"text": self.text, "blocks": list(self.blocks)}, ensure_ascii=False)

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.json.encode()).hexdigest()


@dataclass(frozen=True)
class Message:
    """A row of `slack_messages`.

    `ts` is Slack's id of it, None until it is posted. `only_for` is the only user who sees it; for the first message
    of a thread, the user who receives it where the app cannot post.
    """

    number: int
    message_id: str
    channel: str
    thread: str
    ts: str | None
    kind: str
    execution: int | None
    approval_id: str | None
    only_for: str | None
    content: Content | None
    wanted: str | None
    tries: int


def notice(db: Database, once: str, channel: str, thread: str, content: Content, only_for: str | None = None) -> bool:
    """Post a notice once for each cause, `once`.

    With `only_for`, only that Slack user sees it. Returns False when the cause has a notice already.
    """
    with db.write() as connection:
        made = insert(connection, channel, thread, NOTICE, f"notice {once}", only_for=only_for)
        if made:
            set_content(connection, f"notice {once}", content)
    return made


def diff(db: Database, once: str, channel: str, thread: str, execution: int) -> bool:
    """Post the diff of a run as a file, once for each cause."""
    with db.write() as connection:
        made = insert(connection, channel, thread, DIFF, f"diff {once}", execution=execution)
        if made:
            set_content(connection, f"diff {once}", Content(""))
    return made


def add(db: Database, of: Message, kind: str, once: str, content: Content, *, approval_id: str | None = None) -> bool:
    """Add a message to the thread of a run's message.

    Returns False when this cause, `once`, has a message already.
    """
    with db.write() as connection:
        made = insert(*(connection, of.channel, of.thread, kind, once), execution=of.execution, approval_id=approval_id)
        if made:
            set_content(connection, once, content)
    return made


def want(db: Database, number: int, content: Content, *, final: bool = False) -> bool:
    """Set the content that a message should show.

    A `final` content is not changed again. Returns False when nothing changed.
    """
    with db.write() as connection:
        return bool(
            connection.execute(
                """
                UPDATE slack_messages SET content = :content, wanted = :hash, final = :final
                WHERE number = :number AND final = 0 AND (wanted IS NOT :hash OR final != :final)
                """,
                {"content": content.json, "hash": content.hash, "final": final, "number": number},
            ).rowcount
        )


def shorten(db: Database, number: int, content: Content) -> None:
    """Replace the content of a message, even a final one, with a shorter one."""
    with db.write() as connection:
        connection.execute(
            "UPDATE slack_messages SET content = :content, wanted = :hash, problem = 'too long' WHERE number = :number",
            {"content": content.json, "hash": content.hash, "number": number},
        )


def unfinished(db: Database, kind: str) -> list[Message]:
    """Return the messages of this kind that may still change, oldest first."""
    with db.read() as connection:
        rows = connection.execute(
            "SELECT * FROM slack_messages WHERE final = 0 AND gone = 0 AND kind = :kind ORDER BY number", {"kind": kind}
        ).fetchall()
    return [message_of(row) for row in rows]


def trying(db: Database, number: int) -> None:
    """Record on disk that a message is about to be posted.

    After a kill the message is looked for in Slack before it is posted again.
    """
    with db.write() as connection:
        connection.execute("UPDATE slack_messages SET tries = tries + 1 WHERE number = :number", {"number": number})


def not_posted(db: Database, number: int) -> None:
    """Record that Slack refused a message, so that it need not be looked for."""
    with db.write() as connection:
        connection.execute(
            "UPDATE slack_messages SET tries = 0 WHERE number = :number AND ts IS NULL", {"number": number}
        )


def shown(db: Database, number: int, ts: str | None, content_hash: str | None) -> None:
    """Record that Slack shows a message under `ts`.

    `content_hash` is the hash of the content shown; None when it is not known.
    """
    with db.write() as connection:
        connection.execute(
            """
            UPDATE slack_messages SET ts = coalesce(:ts, ts), shown = :shown, not_before = NULL, problem = NULL
            WHERE number = :number
            """,
            {"ts": ts, "shown": content_hash, "number": number},
        )


def put_off(db: Database, number: int, until: str, problem: str) -> None:
    """Retry a message at `until`, an ISO time."""
    with db.write(durable=False) as connection:
        connection.execute(
            "UPDATE slack_messages SET not_before = :until, problem = :problem WHERE number = :number",
            {"until": until, "problem": problem, "number": number},
        )


def lost(db: Database, number: int) -> None:
    """Clear the ts of a message that somebody deleted, so that it is posted again.

    A message that is deleted a second time is not posted again.
    """
    with db.write() as connection:
        connection.execute(
            """
            UPDATE slack_messages SET gone = (reposted = 1), ts = NULL, shown = NULL, tries = 0, reposted = 1
            WHERE number = :number
            """,
            {"number": number},
        )


def give_up(db: Database, number: int, problem: str) -> None:
    """Stop sending a message whose channel is gone or that Slack refuses for good.

    If it is the first message of a thread, the thread's other messages are given up, too.
    """
    with db.write() as connection:
        connection.execute(
            """
            UPDATE slack_messages SET gone = 1
            WHERE (channel, thread) IN (
                SELECT channel, thread FROM slack_messages WHERE number = :number AND thread LIKE 'opening %')
            """,
            {"number": number},
        )
        connection.execute(
            "UPDATE slack_messages SET gone = 1, problem = :problem WHERE number = :number",
            {"problem": problem, "number": number},
        )


def problems(db: Database) -> tuple[int, str | None]:
    """Return the number of messages with a problem, and the newest problem."""
    with db.read() as connection:
        row = connection.execute(
            """
            SELECT count(*) AS count,
                (SELECT problem FROM slack_messages WHERE problem IS NOT NULL ORDER BY number DESC LIMIT 1) AS newest
            FROM slack_messages WHERE problem IS NOT NULL
            """
        ).fetchone()
    return int(row["count"]), row["newest"]


def forget(db: Database, before: str) -> None:
    """Delete final and given-up messages created before `before`, an ISO time."""
    with db.write(durable=False) as connection:
        connection.execute(
            """
            DELETE FROM slack_messages
            WHERE created_at < :before AND (gone = 1 OR (final = 1 AND shown IS wanted))
            """,
            {"before": before},
        )


def insert(
    connection: sqlite3.Connection,
    channel: str,
    thread: str,
    kind: str,
    once: str,
    *,
    execution: int | None = None,
    approval_id: str | None = None,
    only_for: str | None = None,
) -> bool:
    """Add a message in the caller's transaction.

    Returns False when this cause, `once`, has a message already.
    """
    return bool(
        connection.execute(
            """
            INSERT INTO slack_messages (message_id, once, channel, thread, kind, execution, approval_id, only_for,
                created_at)
            VALUES (:message_id, :once, :channel, :thread, :kind, :execution, :approval_id, :only_for, :now)
            ON CONFLICT (once) DO NOTHING
            """,
            {
                "message_id": f"message-{secrets.token_hex(8)}",
                "once": once,
                "channel": channel,
                "thread": thread,
                "kind": kind,
                "execution": execution,
                "approval_id": approval_id,
                "only_for": only_for,
                "now": iso_now(),
            },
        ).rowcount
    )


def set_content(connection: sqlite3.Connection, once: str, content: Content) -> None:
    """Set the content of a new message in the caller's transaction.

    Only the content of an approval may change later.
    """
    connection.execute(
        """
        UPDATE slack_messages SET content = :content, wanted = :hash, final = (kind != 'approval') WHERE once = :once
        """,
        {"content": content.json, "hash": content.hash, "once": once},
    )


def message_of(row: sqlite3.Row) -> Message:
    """Return a row as a Message."""
    content = None
    if row["content"] is not None:
        loaded = json.loads(row["content"])
        content = Content(loaded["text"], tuple(loaded["blocks"]))
    names = ("number", "message_id", "channel", "thread", "ts", "kind", "execution", "approval_id", "only_for")
    return Message(**{name: row[name] for name in names}, content=content, wanted=row["wanted"], tries=row["tries"])
