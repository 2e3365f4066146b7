"""How writers share the database, what a flush is worth, and how readers hear of what was stored."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from occ_app import errors
from occ_app.database import database as db
from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.executions import events
from occ_app.streams.doorbell import Doorbell, Ringer
from occ_app.streams.tail import Tail
from tests import sentences
from tests.conftest import wait_until


@pytest.fixture
def database(tmp_path: Path) -> Database:
    connection = db.connect(tmp_path / "test.db")
    connection.execute("CREATE TABLE counts (n INTEGER)")
    connection.execute("INSERT INTO counts VALUES (0)")
    connection.close()
    return Database(tmp_path / "test.db")


def test_many_writers_each_get_their_turn(database: Database) -> None:
    def count() -> None:
        for _ in range(50):
            with database.write(durable=False) as connection:
                connection.execute("UPDATE counts SET n = n + 1")

    threads = [threading.Thread(target=count) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute("SELECT n FROM counts").fetchone()[0] == 1000


def test_a_writer_gives_up_on_one_that_never_ends(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "BUSY_SECONDS", 0.2)
    with database.write(durable=False):
        begun = time.monotonic()
        with pytest.raises(errors.Unavailable, match="another program"), database.write():
            pass
        assert time.monotonic() - begun >= 0.2
    with database.write() as connection:
        connection.execute("UPDATE counts SET n = 1")


def test_who_prepared_opens_no_connection_for_the_first_row(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.prepare()
    monkeypatch.setattr(db, "connect", None)
    with database.read() as connection, database.write() as writing:
        assert writing is not connection
        assert connection.execute("SELECT n FROM counts").fetchone()[0] == 0


def test_who_flushes_at_once_shares_the_flush(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, flushes = threading.Event(), threading.Event(), list[int]()

    def slow(descriptor: int) -> None:
        flushes.append(descriptor)
        begun.set()
        go.wait()

    with database.write(durable=False):
        pass
    monkeypatch.setattr(os, "fdatasync", slow)
    threads = [threading.Thread(target=database.sync) for _ in range(20)]
    threads[0].start()
    begun.wait()
    for thread in threads[1:]:
        thread.start()
    threads[-1].join(0.2)  # they are on their way
    go.set()
    for thread in threads:
        thread.join()
    assert 2 <= len(flushes) < len(threads)  # the first, and at least one that began when the others had come


def test_a_transaction_waits_for_the_disk_if_it_asks_for_that(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = list[str]()
    monkeypatch.setattr(os, "fdatasync", lambda number: flushed.append(os.readlink(f"/proc/self/fd/{number}")))
    with database.write(durable=False) as connection:
        connection.execute("UPDATE counts SET n = 1")
    assert flushed == []
    with database.write() as connection:
        connection.execute("UPDATE counts SET n = 2")
        assert flushed == []
    assert flushed == [f"{database.path}-wal"]


def test_others_write_while_one_waits_for_the_disk(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, go = threading.Event(), threading.Event()

    def slow(_: int) -> None:
        waiting.set()
        go.wait()

    def change() -> None:
        with database.write() as connection:
            connection.execute("UPDATE counts SET n = n + 1")

    monkeypatch.setattr(os, "fdatasync", slow)
    thread = threading.Thread(target=change)
    thread.start()
    waiting.wait()
    for other in (database, Database(database.path)):  # in the same process, and as another process would
        with other.write(durable=False) as connection:
            connection.execute("UPDATE counts SET n = n + 1")
    assert thread.is_alive()
    go.set()
    thread.join()
    with database.read() as connection:
        assert connection.execute("SELECT n FROM counts").fetchone()[0] == 3


def test_a_flush_without_the_log_of_commits_is_told(database: Database, tmp_path: Path) -> None:
    with database.write(durable=False) as connection:
        connection.execute("UPDATE counts SET n = 1")
    database.sync()
    (tmp_path / "test.db-wal").unlink()
    with pytest.raises(errors.Unavailable, match="cannot write"):
        database.sync()


def test_a_log_that_has_its_room_beforehand_holds_the_rows_and_does_not_grow(
    database: Database, tmp_path: Path
) -> None:
    writer = threading.Thread(target=_count_up, args=(database, 200))
    writer.start()
    database.make_room_for_log(2 << 20)  # while others write to it
    writer.join()
    assert (tmp_path / "test.db-wal").stat().st_size == 2 << 20
    with contextlib.closing(sqlite3.connect(tmp_path / "test.db")) as beside:
        assert beside.execute("SELECT n FROM counts").fetchone()[0] == 200
        assert beside.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_log_with_room_is_read_after_a_crash(database: Database, tmp_path: Path) -> None:
    database.make_room_for_log(1 << 20)
    _count_up(database, 20)
    for end in ("", "-wal"):  # without the index to the log, which is in memory
        shutil.copy(tmp_path / f"test.db{end}", tmp_path / f"copy.db{end}")
    with contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT n FROM counts").fetchone()[0] == 20


def _count_up(database: Database, times: int) -> None:
    for _ in range(times):
        with database.write(durable=False) as connection:
            connection.execute("UPDATE counts SET n = n + 1")


def test_the_migration_leaves_nothing_of_itself_in_the_process(tmp_path: Path) -> None:
    schema.ensure_schema(tmp_path / "occ.db", tmp_path / "lock")
    with sqlite3.connect(tmp_path / "occ.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == schema.SCHEMA_VERSION
    connection.close()


def test_a_migration_that_fails_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    connection = db.connect(tmp_path / "occ.db")
    connection.execute("CREATE TABLE workspaces (something TEXT)")
    connection.close()
    with pytest.raises(errors.StartFailed, match=sentences.CANNOT_BE_BROUGHT):
        schema.ensure_schema(tmp_path / "occ.db", tmp_path / "lock")
    assert "already exists" in capfd.readouterr().err


def test_a_listener_is_rung_from_its_first_moment_and_a_dead_one_is_forgotten(tmp_path: Path) -> None:
    ringer = Ringer(tmp_path)
    bells = list[Doorbell]()
    for number in range(5):  # each within the same tick of the folder's clock as the one before
        bells.append(Doorbell(tmp_path))
        ringer.ring(f"k{number}")
        assert [bell.rings() for bell in bells] == [([(f"k{number}", b"")], True)] * len(bells)
    bells[0]._socket.close()  # as if its process had been killed
    ringer.ring("last")
    assert [bell.rings() for bell in bells[1:]] == [([("last", b"")], True)] * 4
    assert len(list(tmp_path.iterdir())) == 4
    ringer.close()
    for bell in bells[1:]:
        bell.close()


def test_a_ring_carries_news_while_they_are_little(tmp_path: Path) -> None:
    ringer, bell = Ringer(tmp_path), Doorbell(tmp_path)
    told = [("output", '{"chunk":"zwei\\n\u2028 \u00fc"}'), ("status", "{}")]
    ringer.ring("e1", events.news(7, told))
    ringer.ring("e1", b"x" * 100_000)
    (first, second), all_heard = bell.rings()
    assert all_heard
    assert first[0] == "e1"
    assert [(event.seq, event.name, event.data) for event in events.from_news(first[1])] == [
        (7, "output", told[0][1]),
        (8, "status", "{}"),
    ]
    assert second == ("e1", b"")
    ringer.close()
    bell.close()


def test_who_missed_rings_learns_that_there_were_more(tmp_path: Path) -> None:
    ringer, bell = Ringer(tmp_path), Doorbell(tmp_path)
    for number in range(1000):
        ringer.ring(f"e{number}")
    heard, all_heard = bell.rings()
    assert len(heard) == 1000 or not all_heard
    assert bell.rings() == ([], True)
    ringer.close()
    bell.close()


def with_events(path: Path, last: int) -> Database:
    """A database with the table of events, in which execution 3 has some."""
    connection = db.connect(path)
    connection.execute("CREATE TABLE events (execution INTEGER, seq INTEGER, event TEXT, data TEXT)")
    connection.executemany(
        "INSERT INTO events VALUES (3, ?, 'output', ?)", [(seq, f'"stored {seq}"') for seq in range(1, last + 1)]
    )
    connection.close()
    return Database(path)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 32, 50])
def test_events_are_stored_in_order_however_many_come_at_once(tmp_path: Path, count: int) -> None:
    rows = with_events(tmp_path / "many.db", 0)
    added = [("output" if seq % 3 else "tool", f'{{"number":{seq}}}') for seq in range(5, 5 + count)]
    with rows.write(durable=False) as connection:
        events.insert(connection, 3, 5, added)
    stored = events.after(rows, 3, 0)
    assert [(event.seq, event.name, event.data) for event in stored] == [
        (seq, *event) for seq, event in enumerate(added, 5)
    ]


def test_the_tail_tells_no_end_that_is_not_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = with_events(tmp_path / "tail.db", 2)
    with rows.write(durable=False) as connection:
        events.insert(connection, 3, 3, [("complete", "{}")])
    flushing, go = threading.Event(), threading.Event()

    def slow(_: int) -> None:
        flushing.set()
        go.wait()

    monkeypatch.setattr(os, "fdatasync", slow)
    (tmp_path / "bells").mkdir()
    tail, ringer = Tail(rows, tmp_path / "bells"), Ringer(tmp_path / "bells")
    channel = tail.subscribe("e3", 1)
    tail.start()
    ringer.ring("e3")  # before whoever wrote the end has waited for the disk
    assert flushing.wait(30)
    assert channel.newest == 1
    go.set()
    wait_until(lambda: channel.newest == 3, "the end to be told")
    monkeypatch.setattr(os, "fdatasync", None)
    assert [event.name for event in tail.next_events(channel, 3, 1)] == ["output", "complete"]
    assert [event.seq for event in events.sendable(rows, 3, 0, final_seq=3)] == [1, 2, 3]
    tail.close()
    tail.join_thread()
    ringer.close()


def test_the_tail_takes_news_that_join_on_and_reads_what_does_not(tmp_path: Path) -> None:
    rows = with_events(tmp_path / "tail.db", 10)
    (tmp_path / "bells").mkdir()
    tail, ringer = Tail(rows, tmp_path / "bells"), Ringer(tmp_path / "bells")
    channel = tail.subscribe("e3", 2)
    tail.start()

    def told(*seqs: int) -> bytes:
        return events.news(seqs[0], [("output", f'"told {seq}"') for seq in seqs])

    ringer.ring("e3", told(3, 4))
    wait_until(lambda: channel.newest == 4, "what joins on to be taken")
    ringer.ring("e3", told(9, 10))
    wait_until(lambda: channel.newest == 10, "the rest to be read")
    ringer.ring("e3", told(9, 10, 11))
    wait_until(lambda: channel.newest == 11, "what is new of it to be taken")
    taken = [event.data for event in tail.next_events(channel, 3, 2)]
    assert taken == ['"told 3"', '"told 4"', *(f'"stored {seq}"' for seq in range(5, 11)), '"told 11"']
    tail.close()
    tail.join_thread()
    ringer.close()
