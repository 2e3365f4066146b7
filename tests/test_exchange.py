"""Overwriting on a file system that cannot exchange two names, and a log that another program's reader holds."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from occ_app.config.config import Config
from occ_app.database.database import Database
from occ_app.home import health
from occ_app.system import kernel
from occ_app.workspaces import archives, unfinished, upload_jobs, uploads
from occ_worker.control.upkeep import Upkeep
from tests.conftest import make_zip
from tests.databases import make_database

LIMITS = archives.Limits(1_000_000, 100)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config(home=tmp_path / "home")
    config.make_folders()
    make_database(config.database)
    return config


@pytest.fixture(autouse=True)
def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(kernel, "exchange", refuse)


def upload(config: Config, content: str) -> int:
    database = Database(config.database)
    path = config.run / f"{content}.zip"
    path.write_bytes(make_zip({"a": content}).read())
    number = upload_jobs.submit(database, upload_jobs.Upload("work", "work", "", "overwrite", path))
    uploads.run(database, number, config.workspaces, LIMITS)
    return number


def left(config: Config) -> dict[str, str]:
    return {path.name: (path / "a").read_text() for path in config.workspaces.iterdir()}


def test_an_overwrite_works_without_exchange(config: Config) -> None:
    upload(config, "old")
    number = upload(config, "new")
    assert upload_jobs.result(Database(config.database), number)[0] == "succeeded"
    assert left(config) == {"work": "new"}


@pytest.mark.parametrize("survived", range(1, 6))
def test_an_overwrite_that_is_killed_between_its_renames_is_undone(config: Config, survived: int) -> None:
    upload(config, "old")
    child = os.fork()
    if child == 0:
        real, made = os.rename, 0

        def rename(source: object, target: object, **more: object) -> None:
            nonlocal made
            if made == survived:
                os._exit(0)
            real(source, target, **more)  # type: ignore[call-overload]
            made += 1

        os.rename = rename  # type: ignore[assignment]
        upload(config, "new")
        os._exit(0)
    os.waitpid(child, 0)
    database = Database(config.database)
    upload_jobs.abandon_all(database)
    unfinished.undo(database, config.workspaces)
    state, _ = upload_jobs.result(database, 2)
    assert left(config) == {"work": "new" if state == "succeeded" else "old"}


def test_a_reader_that_holds_the_log_is_named_until_it_lets_go(config: Config) -> None:
    database = Database(config.database)
    upkeep = Upkeep(config, database)
    with database.read() as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM executions").fetchone()
        with database.write() as connection:
            connection.execute("CREATE TABLE filling (content BLOB)")
            connection.execute("INSERT INTO filling VALUES (zeroblob(:size))", {"size": health.LARGE_LOG_BYTES + 1})
        upkeep.checkpoint()
        assert any("occ.db-wal" in problem for problem in health.health(config, database)["problems"])
        reader.execute("COMMIT")
    upkeep.checkpoint()
    assert not any("occ.db-wal" in problem for problem in health.health(config, database)["problems"])
