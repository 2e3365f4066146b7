"""Archives and backups of one instant, whatever is uploaded, removed or changed while they are made."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from occ_app.errors import Refused, Unavailable
from occ_app.workspaces import archives, snapshots
from tests import sentences
from tests.conftest import Occ, make_zip


def tree(folder: Path, version: str) -> Path:
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.txt").write_text(version)
    return folder


def versions(archive: io.BytesIO) -> list[bytes]:
    with zipfile.ZipFile(archive) as zipped:
        return [zipped.read(name) for name in zipped.namelist()]


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, happen: object) -> None:
    """Have something happen when so many files of an archive were read, at the first attempt."""
    real, count = archives._pack_one, 0

    def pack_one(*arguments: object) -> int:
        nonlocal count
        count += 1
        if count == after:
            happen()  # type: ignore[operator]
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(archives, "_pack_one", pack_one)


def test_an_archive_that_an_overwrite_meets_is_of_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, new = tree(tmp_path / "work", "old"), tree(tmp_path / "new", "new")

    def overwrite() -> None:
        folder.rename(tmp_path / "gone")
        new.rename(folder)

    interrupted(monkeypatch, 7, overwrite)
    output = io.BytesIO()
    snapshots.pack_instant(folder, output)
    assert versions(output) == [b"new"] * 20


def test_an_archive_that_a_removal_meets_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree(tmp_path / "work", "old")
    interrupted(monkeypatch, 7, lambda: shutil.rmtree(folder))
    with pytest.raises(FileNotFoundError):
        snapshots.pack_instant(folder, io.BytesIO())


def test_a_file_that_changes_is_read_again_and_one_that_never_rests_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tree(tmp_path / "work", "old")

    def change() -> None:
        for path in (folder / "00.txt", folder / "19.txt"):
            path.write_text("newer")

    interrupted(monkeypatch, 7, change)
    output = io.BytesIO()
    snapshots.pack_instant(folder, output)
    assert versions(output) == [b"newer", *[b"old"] * 18, b"newer"]

    monkeypatch.undo()
    real = archives._pack_one
    monkeypatch.setattr(archives, "_pack_one", lambda *given: (change(), real(*given))[1])
    with pytest.raises(Unavailable) as busy:
        snapshots.pack_instant(folder, io.BytesIO())
    assert busy.value.code == "BUSY"


def test_archives_and_backups_during_overwrites_hold_one_version_each(agent: Occ, tmp_path: Path) -> None:
    """The real agent, whose workspace is replaced all the time."""
    import tarfile
    import threading

    done = threading.Event()

    def overwrite() -> None:
        number = 0
        while not done.is_set():
            number += 1
            files = {f"{name:02}.txt": f"{number} " * 2000 for name in range(30)}
            agent.client.upload("work", make_zip(files))

    agent.client.upload("work", make_zip({f"{name:02}.txt": "0 " * 2000 for name in range(30)}))
    thread = threading.Thread(target=overwrite)
    thread.start()
    try:
        for _ in range(20):
            output = io.BytesIO()
            try:
                agent.client.archive("work", output)
            except Refused as refusal:
                if refusal.code != "BUSY":
                    raise
                continue
            found = versions(output)
            assert (len(found), len(set(found))) == (30, 1)
        backup = agent.command("backup", str(tmp_path / "b.tgz"), check=False)
    finally:
        done.set()
        thread.join()
    if backup.returncode == 0:
        with tarfile.open(tmp_path / "b.tgz") as archive:
            names = [name for name in archive.getnames() if os.path.basename(name).endswith(".txt")]
            contents = {archive.extractfile(name).read() for name in names}  # type: ignore[union-attr]
        assert (len(names), len(contents)) == (30, 1)
    else:
        assert sentences.CHANGE_WHILE_THEY_ARE_READ in backup.stderr
        assert not (tmp_path / "b.tgz").exists()
