"""What Slack is to show, with all SQL on it: each message is a row, with the content it is to have and the one it has.

A run has one message, which is updated. A row is inserted before its message is posted and has an id of its own, which
the message carries in its metadata: so a process that was killed while it posted finds the message again.
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
    """A message: the text of its notification, and its blocks."""

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
    """A row of `slack_messages`. `ts` is Slack's id of it, None until it is posted.

    `only_for` is the user who alone sees it; of an opening, the user who gets it where the app cannot post.
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
    """Say something once: `once` names the cause. With `only_for` nobody but that Slack user sees it."""
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
    """Add a message to the thread of a run's message. False when there is one for this cause."""
    with db.write() as connection:
        made = insert(*(connection, of.channel, of.thread, kind, once), execution=of.execution, approval_id=approval_id)
        if made:
            set_content(connection, once, content)
    return made


def want(db: Database, number: int, content: Content, *, final: bool = False) -> bool:
    """Have a message show this content from now on; a `final` one is not changed any more. False when it is wanted."""
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
    """Replace the content of a message, also of a final one, by one that Slack takes."""
    with db.write() as connection:
        connection.execute(
            "UPDATE slack_messages SET content = :content, wanted = :hash, problem = 'too long' WHERE number = :number",
            {"content": content.json, "hash": content.hash, "number": number},
        )


def unfinished(db: Database, kind: str) -> list[Message]:
    """The messages of this kind that may still change, oldest first."""
    with db.read() as connection:
        rows = connection.execute(
            "SELECT * FROM slack_messages WHERE final = 0 AND gone = 0 AND kind = :kind ORDER BY number", {"kind": kind}
        ).fetchall()
    return [message_of(row) for row in rows]


def trying(db: Database, number: int) -> None:
    """Note, on the disk, that a message is about to be posted: after a kill it is looked for before it is posted."""
    with db.write() as connection:
        connection.execute("UPDATE slack_messages SET tries = tries + 1 WHERE number = :number", {"number": number})


def not_posted(db: Database, number: int) -> None:
    """Note that Slack refused to post a message: it need not be looked for."""
    with db.write() as connection:
        connection.execute(
            "UPDATE slack_messages SET tries = 0 WHERE number = :number AND ts IS NULL", {"number": number}
        )


def shown(db: Database, number: int, ts: str | None, content_hash: str | None) -> None:
    """Note that Slack shows a message under `ts`, with the content of this hash; None for one that is unknown."""
    with db.write() as connection:
        connection.execute(
            """
            UPDATE slack_messages SET ts = coalesce(:ts, ts), shown = :shown, not_before = NULL, problem = NULL
            WHERE number = :number
            """,
            {"ts": ts, "shown": content_hash, "number": number},
        )


def put_off(db: Database, number: int, until: str, problem: str) -> None:
    """Try a message again at `until`, an ISO time."""
    with db.write(durable=False) as connection:
        connection.execute(
            "UPDATE slack_messages SET not_before = :until, problem = :problem WHERE number = :number",
            {"until": until, "problem": problem, "number": number},
        )


def lost(db: Database, number: int) -> None:
    """Forget the ts of a message that somebody deleted: it is posted once more."""
    with db.write() as connection:
        connection.execute(
            """
            UPDATE slack_messages SET gone = (reposted = 1), ts = NULL, shown = NULL, tries = 0, reposted = 1
            WHERE number = :number
            """,
            {"number": number},
        )


def give_up(db: Database, number: int, problem: str) -> None:
    """Send a message no more: its channel is gone, or Slack refuses it for good. With an opening goes its thread."""
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
    """The number of messages that could not be sent, and the newest reason."""
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
    """Forget messages that are final and were made before `before`, an ISO time."""
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
    """Add a message in the caller's transaction. False when there is one for this cause, `once`."""
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
    """Give a new message its content in the caller's transaction. Only that of an approval may change later."""
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
