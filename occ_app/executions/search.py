"""Full-text search over prompts and output: the index, filling it, querying it.

An execution gets into the index once it is over, some seconds later, and leaves it before retention forgets it. Until
then its number is in `unindexed`, where a trigger inserts it; the process that removes it from there decides about it.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import asdict, dataclass

from occ_app.database.database import Database
from occ_app.executions import queries as executions
from occ_app.executions import search_terms
from occ_app.executions.records import Execution
from occ_app.executions.snippets import Marker, Snippet
from occ_app.system.compact_json import object_of

MAX_INDEXED_CHARACTERS = 1_000_000  # of a prompt and of an output; the rest is not searched
_STEP_EXECUTIONS, _STEP_CHARACTERS = 50, 50_000  # one transaction, some milliseconds


@dataclass(frozen=True)
class Result:
    """An execution that was found, and where."""

    execution: Execution
    snippets: list[Snippet]


@dataclass(frozen=True)
class Only:
    """What narrows a search; None: any. `since` is an ISO time."""

    workspace_id: str | None = None
    agent_id: str | None = None
    state: str | None = None
    since: str | None = None


ANY = Only()


@dataclass(frozen=True)
class Found:
    """Hits, newest first.

    `next` is the `before` of the next page; `unindexed` counts executions that are not indexed yet.
    """

    results: list[Result]
    next: int | None
    unindexed: int


def find(
    db: Database,
    query: str,
    visible_to: str | None = None,
    limit: int = 20,
    before: int | None = None,
    only: Only = ANY,
) -> Found:
    """Return executions with every word of `query` in prompt or output.

    Those of the owner `visible_to` alone, if given.
    """
    with db.read() as connection, closing(Marker(query)) as marker:
        unindexed = connection.execute(
            """
            SELECT count(*) FROM unindexed u CROSS JOIN executions x ON x.number = u.number
            WHERE ? IS NULL OR x.owner_id = ?
            """,
            (visible_to, visible_to),
        ).fetchone()[0]
        rows = connection.execute(
            """
            SELECT search.rowid AS number, search.prompt, search.output
            FROM search CROSS JOIN executions x ON x.number = search.rowid
            WHERE search MATCH :expression AND (:before IS NULL OR search.rowid < :before)
                AND (:visible_to IS NULL OR x.owner_id = :visible_to)
                AND (:workspace_id IS NULL OR x.workspace_id = :workspace_id)
                AND (:agent_id IS NULL OR x.agent_id = :agent_id)
                AND (:state IS NULL OR x.state = :state)
                AND (:since IS NULL OR x.created_at >= :since)
            ORDER BY search.rowid DESC LIMIT :limit
            """,
            {
                "expression": search_terms.expression(query),
                "before": before,
                "visible_to": visible_to,
                "limit": limit + 1,
                **asdict(only),
            },
        )
        results: list[Result] = []
        for row in rows:
            if len(results) == limit:
                return Found(results, results[-1].execution.number, unindexed)
            execution = executions.one(connection, "x.number = ?", (row["number"],))
            if execution is not None:
                results.append(Result(execution, marker.snippets(row)))
    return Found(results, None, unindexed)


def waiting(db: Database) -> bool:
    """Whether anything is over and not in the index yet."""
    with db.read() as connection:
        return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM unindexed)").fetchone()[0])


@dataclass(frozen=True)
class Indexed:
    """The number of newly indexed executions, and of their unreadable events."""

    executions: int
    unreadable: int


def index_some(db: Database, seconds: float) -> Indexed:
    """Index finished executions, oldest first, for about `seconds`.

    Returns how many.
    """
    deadline, done, unreadable = time.monotonic() + seconds, 0, 0
    while time.monotonic() < deadline:
        texts = _next_texts(db)
        if not texts:
            break
        with db.write(durable=False) as connection:
            for text in texts:
                if _index(connection, text.number, text.prompt, text.output):
                    done += 1
                    unreadable += text.unreadable
    return Indexed(done, unreadable)


def forget(db: Database, number: int) -> None:
    """Remove an execution from the index for good.

    Call it before its text is deleted.
    """
    with db.write(durable=False) as connection:
        connection.execute("DELETE FROM unindexed WHERE number = ?", (number,))
        connection.execute("DELETE FROM search WHERE rowid = ?", (number,))


def _index(connection: sqlite3.Connection, number: int, prompt: str | None, output: str) -> bool:
    # Gone from there: retention has forgotten it since its text was read, or somebody else has just indexed it.
    if not connection.execute("DELETE FROM unindexed WHERE number = ?", (number,)).rowcount:
        return False
    if prompt is not None:
        connection.execute(
            "INSERT INTO search (rowid, prompt, output) VALUES (:number, :prompt, :output)",
            {
                "number": number,
                "prompt": search_terms.letters_apart(prompt),
                "output": search_terms.letters_apart(output),
            },
        )
    return True


@dataclass(frozen=True)
class _Texts:
    number: int
    prompt: str | None
    output: str
    unreadable: int


def _next_texts(db: Database) -> list[_Texts]:
    """Return the texts of the next executions, for one transaction."""
    texts, characters = list[_Texts](), 0
    with db.read() as connection:
        rows = connection.execute(
            """
            SELECT x.number, substr(x.prompt, 1, ?) AS prompt
            FROM unindexed u CROSS JOIN executions x ON x.number = u.number ORDER BY u.number LIMIT ?
            """,
            (MAX_INDEXED_CHARACTERS, _STEP_EXECUTIONS),
        )
        for number, prompt in rows:
            output, unreadable = _output(connection, number)
            texts.append(
                _Texts(number, None if prompt is None else search_terms.cleaned(str(prompt)), output, unreadable)
            )
            characters += len(str(prompt or "")) + len(output)
            if characters >= _STEP_CHARACTERS:
                break
    return texts


def _output(connection: sqlite3.Connection, number: int) -> tuple[str, int]:
    """Return an execution's output and the number of its unreadable events.

    The output is cut to the indexed length.
    """
    chunks, characters, unreadable = list[str](), 0, 0
    for (data,) in connection.execute(
        "SELECT data FROM events WHERE execution = ? AND event = 'output' ORDER BY seq", (number,)
    ):
        try:
            chunk = object_of(data)["chunk"]
        except (ValueError, KeyError, TypeError):
            chunk = None
        if isinstance(chunk, str):
            characters += len(chunk)
            chunks.append(chunk)
        else:
            unreadable += 1  # a row of an earlier version; the others are searched all the same
        if characters >= MAX_INDEXED_CHARACTERS:
            break
    return search_terms.cleaned("".join(chunks)[:MAX_INDEXED_CHARACTERS]), unreadable
