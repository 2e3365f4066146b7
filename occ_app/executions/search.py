"""Full-text search over prompts and output: the index, filling it, querying it.

An execution gets into the index once it is over, some seconds later, and leaves it before retention forgets it. Until
then its number is in `unindexed`, where a trigger inserts it; the process that removes it from there decides about it.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass

from occ_app.database.database import Database
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.system.compact_json import object_of
from occ_app.system.foreign_text import whole_characters

MAX_INDEXED_CHARACTERS = 1_000_000  # of a prompt and of an output; the rest is not searched
_STEP_EXECUTIONS, _STEP_CHARACTERS = 50, 50_000  # one transaction, some milliseconds
_BEFORE_HIT, _AFTER_HIT = 60, 180  # characters of a snippet
_WINDOW, _OVERLAP = 2000, 200
_TOKENIZE = "tokenize = 'unicode61 remove_diacritics 2'"  # as the migrations made the index

# Around each hit in what SQLite gives back. They mean nothing in Unicode, and no indexed text has them.
_BEGIN, _END = "\ufdd0", "\ufdd1"
# Around each letter of a script without spaces, in the index and in a query, so that it is a word by itself.
_APART = "\x1f"
_CLEANED = {0: " ", ord(_BEGIN): None, ord(_END): None, ord(_APART): " "}  # SQLite ends a text at a zero

# Thai, Lao, Tibetan, Burmese, Khmer, kana, bopomofo, hangul, Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3041-\u318f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]+"
)

_TERM = re.compile(r'"([^"]*)(?:"|$)(\*?)|([^\s"]+)')


@dataclass(frozen=True)
class Piece:
    """A piece of a snippet: `hit` when it matches."""

    text: str
    hit: bool


@dataclass(frozen=True)
class Snippet:
    """The text around the first hit in the `prompt` or in the `output`."""

    where: str
    pieces: list[Piece]


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
    """Newest first. `next` is the `before` of the next page; `unindexed` counts executions that are not indexed yet."""

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
    """Return executions with every word of `query` in prompt or output; of the owner `visible_to` alone, if given."""
    with db.read() as connection, closing(_Marker(query)) as marker:
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
                "expression": expression(query),
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


def expression(query: str) -> str:
    """Return a person's query for FTS5: words and "phrases" that must all be there, `*` after a beginning.

    All else is text to look for, so nothing a person types is a mistake.
    """
    return " ".join(_terms(query)) or '""'


def _terms(query: str) -> Iterator[str]:
    typed = _cleaned(query.encode(errors="replace").decode())
    for phrase, phrase_star, word in _TERM.findall(typed):
        yield f'"{letters_apart(phrase or word)}"' + (" *" if phrase_star or word.endswith("*") else "")


def letters_apart(text: str) -> str:
    """The text with the letters of scripts that put no spaces between words apart, as the index has it."""
    if text.isascii():
        return text
    return _UNSPACED.sub(lambda run: _APART + _APART.join(run[0]) + _APART, text)


def waiting(db: Database) -> bool:
    """Whether anything is over and not in the index yet."""
    with db.read() as connection:
        return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM unindexed)").fetchone()[0])


@dataclass(frozen=True)
class Indexed:
    """How many executions were put into the index, and how many of their events could not be read."""

    executions: int
    unreadable: int


def index_some(db: Database, seconds: float) -> Indexed:
    """Put finished executions into the index, oldest first, for about `seconds`; returns how many."""
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
    """Take an execution out of the index, and see to it that it never gets in; call it before its text is deleted."""
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
            {"number": number, "prompt": letters_apart(prompt), "output": letters_apart(output)},
        )
    return True


@dataclass(frozen=True)
class _Texts:
    number: int
    prompt: str | None
    output: str
    unreadable: int


def _next_texts(db: Database) -> list[_Texts]:
    """Return the texts of the executions that come next, as many as one transaction takes."""
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
            texts.append(_Texts(number, None if prompt is None else _cleaned(str(prompt)), output, unreadable))
            characters += len(str(prompt or "")) + len(output)
            if characters >= _STEP_CHARACTERS:
                break
    return texts


def _output(connection: sqlite3.Connection, number: int) -> tuple[str, int]:
    """Return an execution's output, no more than is indexed, and how many of its events cannot be read."""
    chunks, characters, unreadable = list[str](), 0, 0
    for (data,) in connection.execute(
        "SELECT data FROM events WHERE execution = ? AND event = 'output' ORDER BY seq", (number,)
    ):
        try:
            chunk = object_of(data)["chunk"]
            characters += len(chunk)
            chunks.append(_cleaned(chunk))
        except (ValueError, KeyError, TypeError, AttributeError):
            unreadable += 1  # a row of an earlier version; the others are searched all the same
        if characters >= MAX_INDEXED_CHARACTERS:
            break
    return "".join(chunks)[:MAX_INDEXED_CHARACTERS], unreadable


def _cleaned(text: str) -> str:
    """Return text as FTS5 takes it: no zero, none of the marks of hits, no half of a character."""
    return whole_characters(text.translate(_CLEANED))


class _Marker:
    """Marks hits in text as SQLite found them, by indexing it once more, in memory and a window at a time.

    SQLite's own functions for that, run on the whole of it, take minutes where a word occurs very often.
    """

    def __init__(self, query: str) -> None:
        self._any = " OR ".join(_terms(query)) or '""'
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.execute(f"CREATE VIRTUAL TABLE shown USING fts5 (text, {_TOKENIZE})")

    def close(self) -> None:
        self._connection.close()

    def snippets(self, row: sqlite3.Row) -> list[Snippet]:
        texts = ((where, self._pieces(row[where])) for where in ("prompt", "output"))
        return [Snippet(where, pieces) for where, pieces in texts if pieces]

    def _pieces(self, text: str) -> list[Piece]:
        """The text around the first hit; empty when there is none."""
        for begin, end in _windows(text):
            self._connection.execute("INSERT OR REPLACE INTO shown (rowid, text) VALUES (1, ?)", (text[begin:end],))
            marked = self._connection.execute(
                "SELECT highlight(shown, 0, ?, ?) FROM shown WHERE shown MATCH ?", (_BEGIN, _END, self._any)
            ).fetchone()
            if marked is not None:
                return _cut(marked[0].replace(_APART, ""), more_before=begin > 0, more_after=end < len(text))
        return []


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """Where windows of a text begin and end: between words if that can be, overlapping so that phrases are whole."""
    begin = 0
    while True:
        end = begin + _WINDOW
        if end >= len(text):
            yield begin, len(text)
            return
        space = max(text.rfind(" ", begin, end), text.rfind("\n", begin, end))
        if space - begin > 2 * _OVERLAP:
            end = space
        yield begin, end
        begin = end - _OVERLAP


def _cut(marked: str, *, more_before: bool, more_after: bool) -> list[Piece]:
    """The pieces around the first hit of a text whose hits are marked."""
    hit = marked.index(_BEGIN)
    head, rest = marked[:hit], marked[hit + 1 :]
    if more_before or len(head) > _BEFORE_HIT:
        head = head[-_BEFORE_HIT:]
        head = "…" + (head.partition(" ")[2] or head)  # not from the middle of a word
    tail = rest[:_AFTER_HIT]
    if more_after or len(rest) > _AFTER_HIT:
        tail += "…"
    pieces = [Piece(head, False)]
    for part in tail.split(_BEGIN):
        marked, _, plain = part.partition(_END)
        pieces += [Piece(marked, True), Piece(plain, False)]
    return [piece for piece in pieces if piece.text]
