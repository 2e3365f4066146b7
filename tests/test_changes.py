"""Snapshots of workspaces and their differences, on real trees and the real git, hostile trees among them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from occ_app.snapshots import changes, index
from occ_app.snapshots.changes import Change
from occ_app.snapshots.objects import MissingObject
from occ_app.snapshots.scan import Limits, Skipped
from occ_app.snapshots.store import Snapshots, Taken
from occ_app.system.process_identity import boot_id

SECONDS = 60.0


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "snapshots", os.environ["PATH"], Limits(10_000, 50_000_000))


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def git(folder: Path, *arguments: str) -> bytes:
    """Run git as a user does."""
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True).stdout


def names(snapshots: Snapshots, tree: str) -> list[bytes]:
    """The paths of a snapshot."""
    listed = snapshots.git(1).output(["ls-tree", "-r", "-z", "--name-only", tree], SECONDS)
    return sorted(listed.split(b"\0")[:-1])


def content(snapshots: Snapshots, tree: str, path: str) -> bytes:
    objects = snapshots.objects(1)
    entry = objects.entry(tree, path.encode())
    assert entry is not None
    return objects.blob(entry.oid)


def patch(snapshots: Snapshots, base: str, result: str) -> bytes:
    return b"".join(changes.patch(snapshots.git(1), base, result, snapshots.changes(1, base, result)))


def by_path(found: list[Change]) -> dict[bytes, Change]:
    return {change.path: change for change in found}


def start(snapshots: Snapshots, work: Path) -> Taken:
    return snapshots.take(1, work, SECONDS)


def end(snapshots: Snapshots, work: Path) -> Taken:
    return snapshots.take(1, work, SECONDS, of_run=True)


def state(folder: Path) -> dict[str, tuple[str, bytes | str]]:
    """All files and links below a folder, with their kinds and contents."""
    found: dict[str, tuple[str, bytes | str]] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_file():
            found[name] = ("program" if path.stat().st_mode & 0o100 else "file", path.read_bytes())
    return found


def test_every_kind_of_change_is_listed_and_its_patch_makes_the_same_tree_elsewhere(
    snapshots: Snapshots, work: Path, tmp_path: Path
) -> None:
    lines = "".join(f"line {number}\n" for number in range(50))
    write(
        work,
        {"edited.txt": lines, "moved.txt": lines + "moved\n", "gone/deep/gone.txt": "x\n", "run.sh": "#!/bin/sh\n"},
    )
    write(work, {"picture.bin": bytes(range(256)) * 20, "was-file": "f\n", "no newline": "a", "empty": ""})
    os.symlink("edited.txt", work / "link")
    before = start(snapshots, work)
    copy = tmp_path / "copy"
    shutil.copytree(work, copy, symlinks=True)

    write(work, {"edited.txt": lines.replace("line 7\n", "line seven\n"), "new/made.txt": "made\n", "no newline": "b"})
    (work / "moved.txt").rename(work / "renamed.txt")
    shutil.rmtree(work / "gone")
    (work / "run.sh").chmod(0o755)
    write(work, {"picture.bin": bytes(range(255, -1, -1)) * 20, "other.bin": b"\0\1"})
    (work / "was-file").unlink()
    os.symlink("edited.txt", work / "was-file")
    (work / "link").unlink()
    os.symlink("nowhere/at/all", work / "link")
    after = end(snapshots, work)

    found = by_path(snapshots.changes(1, before.tree, after.tree))
    assert {path: change.status for path, change in found.items()} == {
        b"edited.txt": "modified",
        b"gone/deep/gone.txt": "deleted",
        b"link": "modified",
        b"new/made.txt": "added",
        b"no newline": "modified",
        b"other.bin": "added",
        b"picture.bin": "modified",
        b"renamed.txt": "renamed",
        b"run.sh": "modified",
        b"was-file": "modified",
    }
    edited, renamed, program = found[b"edited.txt"], found[b"renamed.txt"], found[b"run.sh"]
    assert (edited.additions, edited.deletions, edited.binary, edited.size) == (1, 1, False, len(lines) + 4)
    assert (renamed.old_path, renamed.additions, renamed.deletions) == (b"moved.txt", 0, 0)
    assert (program.old_mode, program.mode) == ("100644", "100755")
    assert (found[b"picture.bin"].binary, found[b"picture.bin"].additions) == (True, 0)
    assert (found[b"gone/deep/gone.txt"].mode, found[b"gone/deep/gone.txt"].size) == (None, 2)
    summary = changes.summary(list(found.values()), complete=True, exact=True)
    assert (summary.files, summary.truncated) == (10, False)

    (tmp_path / "patch").write_bytes(patch(snapshots, before.tree, after.tree))
    git(copy, "apply", "--binary", str(tmp_path / "patch"))  # outside of any repository
    assert state(copy) == state(work)


def test_nothing_changed_and_a_touched_file_are_no_change(snapshots: Snapshots, work: Path) -> None:
    write(work, {"a.txt": "a\n", "d/b.txt": "b\n"})
    before = start(snapshots, work)
    os.utime(work / "a.txt", (1, 1))
    (work / "d/b.txt").unlink()
    write(work, {"d/b.txt": "b\n"})
    assert end(snapshots, work) == before
    assert snapshots.changes(1, before.tree, before.tree) == []


def test_a_change_that_keeps_size_and_time_is_seen(snapshots: Snapshots, work: Path) -> None:
    write(work, {"a.txt": "one"})
    os.utime(work / "a.txt", ns=(5, 5))
    before = start(snapshots, work)
    write(work, {"a.txt": "two"})
    os.utime(work / "a.txt", ns=(5, 5))
    assert end(snapshots, work).tree != before.tree


def test_files_are_recorded_byte_for_byte_whatever_attributes_say(snapshots: Snapshots, work: Path) -> None:
    """A workspace's .gitattributes need no configuration to change bytes in git's own hands."""
    attributes = "* text=auto eol=crlf ident filter=evil diff=evil\n*.u16 working-tree-encoding=UTF-16\n"
    files = {
        "crlf.txt": b"a\r\nb\r\n",
        "lf.txt": b"a\nb\n",
        "id.txt": b"$Id$ $Id: x $\n",
        "t.u16": "hé".encode("utf-16"),
    }
    write(work, {".gitattributes": attributes, **files})
    before = start(snapshots, work)
    for name, expected in files.items():
        assert content(snapshots, before.tree, name) == expected
    write(work, {name: expected + b"more\r\n" for name, expected in files.items()})
    after = end(snapshots, work)
    git(work, "init", "-q")
    for name, expected in files.items():
        assert content(snapshots, after.tree, name) == expected + b"more\r\n"
    applied = patch(snapshots, after.tree, before.tree)
    (work / ".gitattributes").unlink()
    (work.parent / "patch").write_bytes(applied)
    git(work, "apply", "--binary", "../patch")
    assert {name: (work / name).read_bytes() for name in files} == files


def test_programs_that_a_workspace_configures_are_never_run(
    snapshots: Snapshots, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n")
    evil.chmod(0o755)
    settings = [
        *("core.fsmonitor", "core.pager", "core.sshCommand", "diff.external", "diff.evil.command"),
        *("diff.evil.textconv", "filter.evil.clean", "filter.evil.smudge", "filter.evil.process"),
    ]
    git(work, "init", "-q")
    for setting in [*settings, "core.hooksPath"]:
        git(work, "config", setting, str(tmp_path if setting == "core.hooksPath" else evil))
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(work / ".git/config", home / ".gitconfig")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(evil))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "diff.external")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(evil))
    write(work, {".gitattributes": "* filter=evil diff=evil\n", "a.txt": "a\n", ".git/hooks/post-index-change": "x"})
    before = start(snapshots, work)
    write(work, {"a.txt": "b\n"})
    after = end(snapshots, work)
    assert b"+b\n" in patch(snapshots, before.tree, after.tree)
    assert not (tmp_path / "ran").exists()
    assert names(snapshots, after.tree) == [b".gitattributes", b"a.txt"]
    # Settings of the snapshots' own directory do not count either.
    shutil.copy(work / ".git/config", snapshots.directory(1) / "config")
    assert b"+b\n" in patch(snapshots, before.tree, after.tree)
    assert not (tmp_path / "ran").exists()


def test_nested_repositories_are_recorded_as_files(snapshots: Snapshots, work: Path) -> None:
    write(work, {"a.txt": "a", "empty/in.txt": "in", "full/in.txt": "in", "bare.git/HEAD": "ref: refs/heads/x\n"})
    for name in ("empty", "full"):
        git(work / name, "init", "-q")
    git(work / "full", "add", ".")
    git(work / "full", "commit", "-qm", "x")
    write(
        work, {"linked/.git": "gitdir: /elsewhere\n", "linked/in.txt": "in", "odd/.GIT/config": "x", "odd/in.txt": "1"}
    )
    before = start(snapshots, work)
    expected = [b"a.txt", b"bare.git/HEAD", b"empty/in.txt", b"full/in.txt", b"linked/in.txt", b"odd/in.txt"]
    assert names(snapshots, before.tree) == expected
    write(work, {"full/in.txt": "changed"})
    assert list(by_path(snapshots.changes(1, before.tree, end(snapshots, work).tree))) == [b"full/in.txt"]
    assert not (work / ".git").exists()


def test_ignore_files_count_as_at_the_start_of_a_run(snapshots: Snapshots, work: Path) -> None:
    write(work, {".gitignore": "*.log\nbuilt/\n", "a.py": "a", "b.py": "b", "old.log": "l", "built/x": "x"})
    before = start(snapshots, work)
    assert names(snapshots, before.tree) == [b".gitignore", b"a.py", b"b.py"]
    write(work, {".gitignore": "*.py\n", "a.py": "changed", "new.py": "n", "new.log": "l", "built/y": "y"})
    after = end(snapshots, work)
    found = by_path(snapshots.changes(1, before.tree, after.tree))
    assert {path: change.status for path, change in found.items()} == {
        b".gitignore": "modified",
        b"a.py": "modified",
        b"new.py": "added",
    }
    assert names(snapshots, start(snapshots, work).tree) == [
        b".gitignore",
        b"built/x",
        b"built/y",
        b"new.log",
        b"old.log",
    ]


def test_a_cache_folder_that_ignores_itself_is_no_change(snapshots: Snapshots, work: Path) -> None:
    write(work, {"a.py": "a"})
    before = start(snapshots, work)
    write(work, {".cache/.gitignore": "*\n", ".cache/many": "x", "made/.gitignore": "*.o\n", "made/x.o": "o"})
    found = by_path(snapshots.changes(1, before.tree, end(snapshots, work).tree))
    assert list(found) == [b"made/.gitignore"]


def test_the_exclude_file_of_a_repository_counts(snapshots: Snapshots, work: Path) -> None:
    git(work, "init", "-q")
    write(work, {".git/info/exclude": "secret.txt\n", "secret.txt": "s", "a.txt": "a"})
    assert names(snapshots, start(snapshots, work).tree) == [b"a.txt"]


def test_links_are_recorded_and_never_followed(snapshots: Snapshots, work: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside, {"secret.txt": "secret"})
    os.symlink(outside, work / "folder")
    os.symlink(outside / "secret.txt", work / "file")
    os.symlink("loop", work / "loop")
    write(work, {"real/.gitignore": "x"})
    os.symlink(outside / "secret.txt", work / ".gitignore")
    taken = start(snapshots, work)
    assert names(snapshots, taken.tree) == [b".gitignore", b"file", b"folder", b"loop", b"real/.gitignore"]
    assert content(snapshots, taken.tree, "folder") == os.fsencode(outside)
    assert b"secret\n" not in b"".join(path.read_bytes() for _, path in snapshots.objects(1).all())


def test_names_of_any_bytes_and_special_files(snapshots: Snapshots, work: Path, tmp_path: Path) -> None:
    odd = [b"new\nline", b'quo"te', b"back\\slash", b"caf\xe9", b"tab\t", b"git~1", "ünï".encode(), b"-rf", b" ", b"*"]
    for name in odd:
        Path(os.fsdecode(os.fsencode(work) + b"/" + name)).write_bytes(name)
    os.mkfifo(work / "pipe")
    os.mkfifo(work / ".gitattributes")
    (work / "sub").mkdir()
    os.mkfifo(work / "sub/.gitignore")
    before = start(snapshots, work)
    assert names(snapshots, before.tree) == sorted(odd)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in odd:
        shutil.copy(os.fsencode(work) + b"/" + name, os.fsencode(copy) + b"/" + name)
        Path(os.fsdecode(os.fsencode(work) + b"/" + name)).write_bytes(name + b" changed\n")
    after = end(snapshots, work)
    found = snapshots.changes(1, before.tree, after.tree)
    assert sorted(change.path for change in found) == sorted(odd)
    chosen = next(change for change in found if change.path == b"*")
    only = b"".join(changes.patch(snapshots.git(1), before.tree, after.tree, found, chosen))
    assert only.count(b"diff --git") == 1
    (tmp_path / "patch").write_bytes(patch(snapshots, before.tree, after.tree))
    git(copy, "-c", "core.protectNTFS=false", "apply", "--binary", str(tmp_path / "patch"))
    assert state(copy) == state(work)


def test_over_a_limit_there_is_no_snapshot_and_a_sparse_file_costs_no_time(snapshots: Snapshots, work: Path) -> None:
    write(work, {"a.txt": "a"})
    before = start(snapshots, work)
    with (work / "huge").open("wb") as file:
        file.truncate(2_000_000_000)
    with pytest.raises(Skipped, match="too large"):
        end(snapshots, work)
    (work / "huge").unlink()
    assert end(snapshots, work) == before
    few = Snapshots(snapshots.folder, snapshots.search_path, Limits(2, 1000))
    write(work, {"b.txt": "b", "c.txt": "c"})
    with pytest.raises(Skipped, match="too large"):
        few.take(1, work, SECONDS)
    with pytest.raises(Skipped, match="too slow"):
        snapshots.take(1, work, -1)


def test_folders_nested_without_end_are_no_endless_reading(snapshots: Snapshots, work: Path) -> None:
    write(work, {"/".join(["d"] * 101) + "/f": "x"})
    with pytest.raises(Skipped, match="too deep"):
        start(snapshots, work)


def test_a_pattern_of_many_stars_takes_no_time(snapshots: Snapshots, work: Path) -> None:
    evil = "*a" * 40 + "b\n" + "**/a*" * 20 + "/**/b\n" + "x/" + "*a" * 30 + "b\n"
    write(work, {".gitignore": evil, "a" * 200: "x", "x/" + "a" * 200: "x", "a" * 40 + "b": "ignored"})
    begun = time.process_time()
    taken = start(snapshots, work)
    assert time.process_time() - begun < 5
    assert b"a" * 40 + b"b" not in names(snapshots, taken.tree)
    assert len(names(snapshots, taken.tree)) == 3


def test_without_git_there_is_no_snapshot(snapshots: Snapshots, work: Path, tmp_path: Path) -> None:
    without = Snapshots(snapshots.folder, str(tmp_path), snapshots.limits)
    with pytest.raises(Skipped, match="no git"):
        without.take(1, work, SECONDS)
    assert without.current(1, work) is None
    assert not snapshots.folder.exists()


def test_after_a_reboot_nothing_that_a_power_cut_may_have_lost_is_believed(snapshots: Snapshots, work: Path) -> None:
    write(work, {"a.txt": "a\n", "b/c.txt": "c\n"})
    before = start(snapshots, work)
    for _, path in snapshots.objects(1).all():  # as a file system leaves files that were not flushed
        path.chmod(0o600)
        path.write_bytes(b"")
    known = index.load(snapshots.directory(1) / "occ-index.json", boot_id())
    index.save(snapshots.directory(1) / "occ-index.json", known, "another boot")
    write(work, {"a.txt": "changed\n"})
    after = start(snapshots, work)
    assert content(snapshots, after.tree, "b/c.txt") == b"c\n"
    with pytest.raises(MissingObject):
        snapshots.changes(1, before.tree, after.tree)
    (snapshots.directory(1) / "occ-index.json").write_bytes(b"{damaged")
    assert start(snapshots, work) == after


def test_a_large_file_is_counted_and_left_out_of_the_patch(
    snapshots: Snapshots, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_PATCHED_BYTES", 1_000_000)
    write(work, {"a.txt": "a\n", "large.bin": random.Random(1).randbytes(1_500_000)})  # noqa: S311 - a test's choice
    before = start(snapshots, work)
    (work / "large.bin").rename(work / "moved.bin")
    renamed = snapshots.changes(1, before.tree, end(snapshots, work).tree)
    assert [(change.status, change.patched) for change in renamed] == [("renamed", True)]
    write(work, {"a.txt": "b\n", "moved.bin": random.Random(2).randbytes(1_500_000), "new.txt": "n\n"})  # noqa: S311 - a test's choice
    after = end(snapshots, work)
    found = snapshots.changes(1, before.tree, after.tree)
    assert changes.summary(found, complete=True, exact=True).truncated
    made = b"".join(changes.patch(snapshots.git(1), before.tree, after.tree, found))
    assert len(made) < 10_000
    assert made.count(b"diff --git") == 2
    assert snapshots.objects(1).size(by_path(found)[b"moved.bin"].oid or "") == 1_500_000


def test_pruning_keeps_the_kept_and_the_latest_snapshots(snapshots: Snapshots, work: Path) -> None:
    trees = []
    for number in range(4):
        write(work, {"a.txt": f"{number}\n", f"d{number}/f.txt": f"{number}\n"})
        trees.append(start(snapshots, work).tree)
    used = snapshots.used_bytes()
    snapshots.prune(1, {trees[1]}, SECONDS)
    assert snapshots.used_bytes() < used
    assert content(snapshots, trees[1], "a.txt") == b"1\n"
    assert content(snapshots, trees[3], "d0/f.txt") == b"0\n"
    assert len(snapshots.changes(1, trees[1], trees[3])) == 3
    for gone in (trees[0], trees[2]):
        with pytest.raises(MissingObject):
            snapshots.changes(1, gone, trees[3])
    write(work, {"a.txt": "0\n"})
    assert content(snapshots, start(snapshots, work).tree, "a.txt") == b"0\n"


def test_random_trees_are_recorded_as_git_records_them(snapshots: Snapshots, tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311 - a test's choice
    for number in range(30):
        work = tmp_path / f"tree-{number}"
        work.mkdir()
        pieces = ["a", "b.log", "c.py", "d", ".x", "e e", "A"]
        for _ in range(25):
            path = "/".join(chance.choices(pieces, k=chance.randint(1, 4)))
            if not any((work / parent).is_file() for parent in Path(path).parents) and not (work / path).exists():
                write(work, {path: str(chance.random())})
                (work / path).chmod(chance.choice([0o644, 0o755]))
        patterns = ["*.log", "/d", "a/", "!b.log", "**/c.py", "e e", "a/*/d", ".x", "A/**"]
        for folder in (work, *(path for path in work.iterdir() if path.is_dir())):
            if chance.random() < 0.5 and not (folder / ".gitignore").exists():
                write(folder, {".gitignore": "\n".join(chance.choices(patterns, k=3)) + "\n"})
        taken = snapshots.take(number, work, SECONDS)
        git(work, "init", "-q")
        git(work, "add", "-A")
        assert git(work, "write-tree").decode().strip() == taken.tree, work


def test_large_files_are_whole_for_git_whether_they_shrink_or_not(snapshots: Snapshots, work: Path) -> None:
    noise = random.Random(1).randbytes(600_000)  # noqa: S311 - the same bytes each time
    files: dict[str, str | bytes] = {
        "noise": noise,
        "text": b"a line\n" * 100_000,
        "text, then noise": b"a line\n" * 50_000 + noise,
        "noise, then text": noise + b"a line\n" * 100_000,
    }
    write(work, files)
    tree = start(snapshots, work).tree
    for name, expected in files.items():
        assert content(snapshots, tree, name) == expected
        assert snapshots.git(1).output(["cat-file", "blob", f"{tree}:{name}"], SECONDS) == expected
    entry = snapshots.objects(1).entry(tree, b"text")
    assert entry is not None
    stored = snapshots.directory(1) / "objects" / entry.oid[:2] / entry.oid[2:]
    assert stored.stat().st_size < 20_000
