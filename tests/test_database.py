"""How writers share the database, and what a flush is worth."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from occ_app import db, errors
from occ_app.db import Database
from occ_app.doorbell import Doorbell, Ringer


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


def test_each_transaction_is_as_durable_as_it_asks_for(database: Database) -> None:
    for durable, mode in ((True, 2), (False, 1), (False, 1), (True, 2)):
        with database.write(durable=durable) as connection:
            assert connection.execute("PRAGMA synchronous").fetchone()[0] == mode


def test_a_flush_without_the_log_of_commits_is_told(database: Database, tmp_path: Path) -> None:
    with database.write(durable=False) as connection:
        connection.execute("UPDATE counts SET n = 1")
    database.flush()
    (tmp_path / "test.db-wal").unlink()
    with pytest.raises(errors.Unavailable, match="cannot write"):
        database.flush()


def test_the_migration_leaves_nothing_of_itself_in_the_process(tmp_path: Path) -> None:
    db.ensure_schema(tmp_path / "occ.db", tmp_path / "lock")
    with sqlite3.connect(tmp_path / "occ.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == db.SCHEMA_VERSION
    connection.close()


def test_a_migration_that_fails_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    connection = db.connect(tmp_path / "occ.db")
    connection.execute("CREATE TABLE workspaces (something TEXT)")
    connection.close()
    with pytest.raises(errors.StartFailed, match="cannot be brought"):
        db.ensure_schema(tmp_path / "occ.db", tmp_path / "lock")
    assert "already exists" in capfd.readouterr().err


def test_a_listener_is_rung_from_its_first_moment_and_a_dead_one_is_forgotten(tmp_path: Path) -> None:
    ringer = Ringer(tmp_path)
    bells = list[Doorbell]()
    for number in range(5):  # each within the same tick of the folder's clock as the one before
        bells.append(Doorbell(tmp_path))
        ringer.ring(f"k{number}")
        assert [bell.keys() for bell in bells] == [{f"k{number}"}] * len(bells)
    bells[0]._socket.close()  # as if its process had been killed
    ringer.ring("last")
    assert [bell.keys() for bell in bells[1:]] == [{"last"}] * 4
    assert len(list(tmp_path.iterdir())) == 4
    ringer.close()
    for bell in bells[1:]:
        bell.close()
