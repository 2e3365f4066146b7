"""Finding executions by what was asked and answered, on the real daemon and on rows alone."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.errors import Refused
from occ_app.executions import events, lifecycle, retention, search
from occ_app.executions import queries as executions
from occ_app.executions.records import Outcome, Request
from occ_app.system.process_identity import own_identity
from tests import sentences
from tests.conftest import Occ, shared_agent, steps, wait_until
from tests.databases import database_with

SECONDS = 30.0
EXAMPLES = 300 if os.environ.get("TEST_ALL") else 100


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    """An agent that was asked a few things."""
    with shared_agent(tmp_path_factory.mktemp("told")) as agent:
        agent.workspace()
        agent.run("Is there milk in the fridge?", executionId="milk")
        agent.run(
            steps({"say": "The naïve answer: "}, {"say": "oat mi"}, {"say": "lk, and bread."}), executionId="oats"
        )
        agent.run("Write occ_app/bread.py for me", executionId="code")
        wait_until(lambda: not search.waiting(agent.database), "all of it to be indexed")
        yield agent


def found(agent: Occ, query: str) -> list[str]:
    return [result["execution"]["executionId"] for result in agent.client.search(query)["results"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("milk", ["oats", "milk"]),
        ("MILK fridge", ["milk"]),
        ("milk fridge bread", []),
        ("naive", ["oats"]),
        ('"oat milk"', ["oats"]),
        ('"milk oat"', []),
        ("fri*", ["milk"]),
        ("fri", []),
        ('"in the fri"*', ["milk"]),
        ("occ_app/bread.py", ["code"]),
        ("bread.py AND", []),
        ("bread -", ["code", "oats"]),
        ('"', []),
        ("NEAR(milk", []),
        ("prompt:milk", []),
        ("?!", []),
    ],
)
def test_what_a_person_types_is_what_is_looked_for(told: Occ, query: str, expected: list[str]) -> None:
    assert found(told, query) == expected


def test_a_hit_is_shown_in_its_text(told: Occ) -> None:
    (result,) = told.client.search("fridge")["results"]
    assert result["execution"] == told.client.execution("milk")
    prompt, output = result["snippets"]
    assert (prompt["in"], output["in"]) == ("prompt", "output")
    assert prompt["pieces"] == [
        {"text": "Is there milk in the ", "hit": False},
        {"text": "fridge", "hit": True},
        {"text": "?", "hit": False},
    ]
    assert "".join(piece["text"] for piece in output["pieces"]) == "You said: Is there milk in the fridge?"


def test_pages_join_without_a_gap_while_more_comes(told: Occ) -> None:
    first = told.client.search("milk", limit=1)
    second = told.client.search("milk", limit=1, before=first["next"])
    pages = [[result["execution"]["executionId"] for result in page["results"]] for page in (first, second)]
    assert (pages, second["next"], second["unindexed"]) == ([["oats"], ["milk"]], None, 0)


@pytest.mark.parametrize(
    "query", ["", "?q=", "?q=%20%09", "?q=a&limit=0", "?q=a&limit=101", "?q=a&before=x", "?q=a&x=1"]
)
def test_a_wrong_query_is_refused_by_name(told: Occ, query: str) -> None:
    response = told.request("GET", f"/search{query}")
    assert (response.status, response.json()["code"]) == (422, "INVALID_REQUEST")


def test_a_query_that_is_too_long_is_refused(told: Occ) -> None:
    with pytest.raises(Refused, match="q"):
        told.client.search("x" * 1001)
    assert told.client.search("x " * 500)["results"] == []


def test_the_command_finds_them_and_says_where(told: Occ) -> None:
    lines = told.command("jobs", "search", "fridge").stdout.splitlines()
    assert lines[0].split()[:3] == ["milk", "succeeded", "work"]
    assert lines[1:] == ["  prompt: Is there milk in the fridge?", "  output: You said: Is there milk in the fridge?"]
    assert told.command("jobs", "search", "nowhere").stdout == f"{sentences.NO_EXECUTIONS_LIKE_THAT}\n"
    assert sentences.THERE_ARE_MORE in told.command("jobs", "search", "milk", "--limit", "1").stderr
    assert json.loads(told.command("jobs", "search", "milk", "--json").stdout) == told.client.search("milk")


def test_the_command_works_while_the_daemon_is_down_and_says_what_it_cannot_find_yet(agent: Occ) -> None:
    agent.run("early words", executionId="early")
    wait_until(lambda: not search.waiting(agent.database), "it to be indexed")
    agent.stop()
    with agent.database.write() as connection:
        connection.execute("INSERT INTO unindexed SELECT number FROM executions")
        connection.execute("DELETE FROM search")
    done = agent.command("jobs", "search", "early")
    assert done.stdout == f"{sentences.NO_EXECUTIONS_LIKE_THAT}\n"
    assert sentences.NOT_INDEXED_YET.format(1) in done.stderr
    agent.start()
    wait_until(lambda: "early" in agent.command("jobs", "search", "early").stdout, "it to be found again")


def test_what_the_daemon_forgets_is_found_no_more(agent: Occ) -> None:
    agent.run("a secret thing", executionId="old")
    agent.run("a secret thing again", executionId="new")
    wait_until(lambda: found(agent, "secret") == ["new", "old"], "both to be found")
    with agent.database.write() as connection:
        connection.execute("UPDATE executions SET finished_at = '2001' WHERE execution_id = 'old'")
    agent.command("jobs", "prune", "--older-than", "1d")
    assert found(agent, "secret") == ["new"]


@pytest.fixture
def rows(tmp_path: Path) -> Database:
    """A database with a workspace and nothing else."""
    return database_with(tmp_path / "occ.db", "w")


def over(rows: Database, execution_id: str, prompt: str, *chunks: str, key_id: str | None = None) -> int:
    """An execution that was asked `prompt` and said `chunks`; returns its number."""
    asked = Request(execution_id, "w", prompt, 9, 9, None, None, None, None, "", key_id, key_id)
    number = lifecycle.create(rows, asked, max_queue=10**6)[0].number
    lifecycle.claim(rows, own_identity())
    events.append(rows, number, 2, [("output", json.dumps({"chunk": chunk})) for chunk in chunks])
    lifecycle.finish(rows, number, Outcome("succeeded", "complete", {}))
    return number


def ids(rows: Database, query: str, visible_to: str | None = None) -> list[str]:
    return [result.execution.execution_id for result in search.find(rows, query, visible_to).results]


def test_a_key_finds_its_own_and_is_told_of_nothing_else(rows: Database) -> None:
    over(rows, "a", "shared words", key_id="alice")
    over(rows, "b", "shared words", key_id="bob")
    over(rows, "c", "shared words", key_id="bob")
    assert [search.find(rows, "shared", key).unindexed for key in (None, "alice", "bob", "carol")] == [3, 1, 2, 0]
    search.index_some(rows, SECONDS)
    assert ids(rows, "shared") == ["c", "b", "a"]
    assert [ids(rows, "shared", key) for key in ("alice", "bob", "carol")] == [["a"], ["c", "b"], []]
    page = search.find(rows, "shared", "bob", limit=1)
    assert page.next is not None
    assert search.find(rows, "shared", "alice", limit=1, before=page.next).next is None


def test_what_is_forgotten_before_it_is_indexed_never_is(rows: Database) -> None:
    over(rows, "old", "a secret", "another secret")
    retention.prune(rows, "9999", math.inf)
    assert search.index_some(rows, SECONDS).executions == 0
    assert search.find(rows, "secret") == search.Found([], None, 0)


def test_what_is_forgotten_while_it_is_being_indexed_is_not_found_either(rows: Database) -> None:
    """Everything over and over, by two threads each for as long as there is something to do."""
    for number in range(300):
        over(rows, f"e{number}", "a secret", "x" * 5000)
    threads = [threading.Thread(target=search.index_some, args=(rows, SECONDS)) for _ in range(2)]
    threads += [threading.Thread(target=retention.prune, args=(rows, "9999", math.inf)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert search.find(rows, "secret") == search.Found([], None, 0)
    with rows.read() as connection:
        assert connection.execute("SELECT count(*) FROM search").fetchone()[0] == 0
        connection.execute("SELECT * FROM search WHERE search MATCH 'secret'").fetchall()


def test_text_that_is_half_forgotten_is_not_found(rows: Database) -> None:
    number = over(rows, "old", "a secret", *["secret"] * 5000)
    search.index_some(rows, SECONDS)
    assert ids(rows, "secret") == ["old"]
    retention.prune(rows, "9999", time.monotonic() + 0.0001)
    assert executions.get(rows, "old").prompt == "a secret"
    assert len(events.after(rows, number, 0, 10_000)) > 1
    assert ids(rows, "secret") == []


def test_only_the_beginning_of_a_long_output_is_searched(rows: Database) -> None:
    over(rows, "long", "q", "early " + "x " * 499_995, "close", " beyond")
    search.index_some(rows, SECONDS)
    assert [ids(rows, word) for word in ("early", "clos", "beyond")] == [["long"], ["long"], []]


def test_a_word_that_stands_everywhere_is_found_at_once(rows: Database) -> None:
    over(rows, "flood", "q", "a " * 500_000)
    search.index_some(rows, SECONDS)
    begun = time.thread_time()
    (result,) = search.find(rows, "a").results
    assert time.thread_time() - begun < 5
    (snippet,) = result.snippets
    assert "".join(piece.text for piece in snippet.pieces) == "a " * 45 + "…"


def test_the_text_around_a_hit_begins_with_a_word(rows: Database) -> None:
    over(rows, "one", "beforehand " * 20 + "needle" + " afterwards" * 40, "\0\ufdd0needle\ufdd1")
    search.index_some(rows, SECONDS)
    prompt, output = search.find(rows, "needle").results[0].snippets
    texts = [piece.text for piece in prompt.pieces]
    assert texts[0] == "…" + "beforehand " * 5
    assert texts[1] == "needle"
    assert texts[2].startswith(" afterwards afterwards")
    assert texts[2].endswith("…")
    assert [piece.text for piece in output.pieces] == [" ", "needle"]


def test_many_are_indexed_in_short_transactions(rows: Database) -> None:
    for number in range(400):
        over(rows, f"e{number}", "words to find", "and some more of them, " * 20)
    begun = time.thread_time()
    assert search.index_some(rows, SECONDS).executions == 400
    assert 400 / (time.thread_time() - begun) > 300
    assert len(search.find(rows, "find", limit=100).results) == 100
    assert not search.waiting(rows)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(max_size=60) | st.text(alphabet='ab"*^:+-(){} \tANDORNTE,.\\é\0', max_size=40))
def test_no_query_is_a_mistake(rows: Database, query: str) -> None:
    if not executions.counts(rows)[0]:
        over(rows, f"e{time.monotonic_ns()}", "a b ab AND OR NOT NEAR é", "ab é, a")
        search.index_some(rows, SECONDS)
    search.find(rows, query)
    (result, *_) = search.find(rows, f'{query}" é a*').results or [None]
    assert result is None or result.snippets


UNSPACED = {
    "zh": "项目的数据库连接失败。请检查配置。",
    "ja": "住民が主体となって組織を作る",
    "th": "ฐานข้อมูลเชื่อมต่อไม่ได้",
    "ko": "데이터베이스에 연결할 수 없습니다",
    "mixed": "重跑gen-itgc后再试",
    "latin": "日本語のtest文章をAPIで書く🚀2024年",
    "km": "ភាសាខ្មែរ កម្ពុជា",
}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("数据库", ["zh"]),
        ("配置", ["zh"]),
        ("库", ["zh"]),
        ("数据库 配置", ["zh"]),
        ('"数据库连接"', ["zh"]),
        ("数据*", ["zh"]),
        ("库数", []),
        ("組織", ["ja"]),
        ("を作る", ["ja"]),
        ("เชื่อมต่อ", ["th"]),
        ("데이터베이스", ["ko"]),
        ('"데이터베이스에 연결"', ["ko"]),
        ("itgc", ["mixed"]),
        ("itgc后", ["mixed"]),
        ("本語の", ["latin"]),
        ("語のtest文", ["latin"]),
        ("apiで", ["latin"]),
        ("test", ["latin"]),
        ("tes", []),  # within Latin letters only whole words, or the beginning of one with a *
        ("のtes*", ["latin"]),
        ("2024年", ["latin"]),
        ("🚀", []),
        ("書く🚀2024", ["latin"]),
        ("ខ្មែរ", ["km"]),
        ("កម្ពុ", ["km"]),
    ],
)
def test_words_of_scripts_without_spaces_are_found(rows: Database, query: str, found: list[str]) -> None:
    for execution_id, text in UNSPACED.items():
        over(rows, execution_id, "prompt", text)
    search.index_some(rows, 10)
    results = search.find(rows, query).results
    assert [result.execution.execution_id for result in results] == found
    for result in results:
        pieces = result.snippets[0].pieces
        assert "".join(piece.text for piece in pieces) == UNSPACED[result.execution.execution_id]
        assert any(piece.hit for piece in pieces)


def test_an_older_index_is_filled_again_where_scripts_have_no_spaces(tmp_path: Path) -> None:
    path = tmp_path / "occ.db"
    schema.ensure_schema(path, tmp_path / "lock")
    rows = Database(path)
    with rows.write() as connection:
        for number, text in enumerate((UNSPACED["zh"], "plain words"), 1):
            connection.execute("INSERT INTO search (rowid, prompt, output) VALUES (?, ?, '')", (number, text))
        connection.execute("DELETE FROM _sqlite_migrations WHERE name = 'm008_letters_apart'")
        connection.execute("PRAGMA user_version = 7")
    rows.close()
    schema.ensure_schema(path, tmp_path / "lock")
    rows = Database(path)
    with rows.read() as connection:
        assert [row[0] for row in connection.execute("SELECT number FROM unindexed")] == [1]
        assert [row[0] for row in connection.execute("SELECT rowid FROM search")] == [2]
    rows.close()
