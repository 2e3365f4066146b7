"""Changes of an execution in a folder: written, merged, refused, and never half done."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from occ_app import errors
from occ_app.cli import commands, diff, folders, gitignore, merging, output, remote, tree_files, tree_update
from occ_app.cli.merging import Plan
from occ_app.cli.tree_update import WORK, TreeUpdate
from occ_app.client.agent_client import AgentClient
from occ_app.client.results import Entry
from occ_app.system import kernel
from tests import sentences
from tests.conftest import Occ, steps

TEN = b"".join(b"line %d\n" % number for number in range(10))


def entry(path: str, status: str = "modified", old_path: str | None = None, **modes: str | None) -> Entry:
    mode = None if status == "deleted" else "100644"
    old_mode = None if status == "added" else "100644"
    return Entry(path, old_path, status, 1, 1, False, modes.get("mode", mode), modes.get("old_mode", old_mode))


def pull(
    folder: Path,
    entries: list[Entry],
    start: Mapping[str, bytes] | None = None,
    end: Mapping[str, bytes] | None = None,
    *,
    trust: bool = False,
    force: bool = False,
    reject: bool = False,
) -> Plan:
    """Bring changes into a folder as `occ pull` does."""
    sides = {"start": start or {}, "end": end or {}}
    with TreeUpdate(folder) as update:
        outcome = merging.plan(update, entries, lambda path, at: sides[at][path], trust=trust, force=force)
        if not outcome.conflicts or reject:
            update.commit()
    return outcome


def tree(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    made.mkdir()
    return made


def test_files_are_written_removed_and_renamed(folder: Path) -> None:
    for name in ("edited", "gone/deep/only", "old"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(TEN)
    entries = [
        entry("edited"),
        entry("new/deep/file", "added"),
        entry("gone/deep/only", "deleted"),
        entry("moved/here", "renamed", "old"),
    ]
    start = dict.fromkeys(("edited", "gone/deep/only", "old"), TEN)
    end = {"edited": b"e\n", "new/deep/file": b"\0new", "moved/here": TEN + b"x\n"}
    outcome = pull(folder, entries, start, end)
    assert not outcome.conflicts
    assert tree(folder) == end
    assert sorted(path.name for path in folder.iterdir()) == ["edited", "moved", "new"]
    again = pull(folder, entries, start, end)
    assert not again.written
    assert not again.removed
    assert tree(folder) == end


def test_modes_are_written_and_others_are_kept(folder: Path) -> None:
    for name, mode in (("program", 0o640), ("text", 0o750), ("kept", 0o700)):
        (folder / name).write_bytes(TEN)
        (folder / name).chmod(mode)
    entries = [
        entry("program", mode="100755"),
        entry("text", mode="100644", old_mode="100755"),
        entry("kept"),
        entry("new", "added", mode="100755"),
    ]
    end = {"program": TEN, "text": TEN, "kept": b"k\n", "new": b"#!/bin/sh\n"}
    assert not pull(folder, entries, dict.fromkeys(("program", "text", "kept"), TEN), end).conflicts
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert (modes["program"], modes["text"], modes["kept"]) == (0o750, 0o640, 0o700)
    assert modes["new"] & 0o100


def test_an_edit_in_another_place_is_merged(folder: Path) -> None:
    (folder / "file").write_bytes(TEN.replace(b"line 0", b"mine"))
    outcome = pull(folder, [entry("file")], {"file": TEN}, {"file": TEN.replace(b"line 9", b"run's")})
    assert outcome.merged == ["file"]
    assert (folder / "file").read_bytes() == TEN.replace(b"line 0", b"mine").replace(b"line 9", b"run's")


def test_an_edit_goes_with_a_renamed_file(folder: Path) -> None:
    (folder / "old").write_bytes(TEN.replace(b"line 0", b"mine"))
    outcome = pull(folder, [entry("new", "renamed", "old")], {"old": TEN}, {"new": TEN + b"more\n"})
    assert not outcome.conflicts
    assert tree(folder) == {"new": TEN.replace(b"line 0", b"mine") + b"more\n"}


def test_one_conflict_leaves_everything_as_it_was(folder: Path) -> None:
    (folder / "both").write_bytes(b"mine\n")
    (folder / "plain").write_bytes(TEN)
    before = tree(folder)
    entries = [entry("both"), entry("plain"), entry("new", "added")]
    start, end = {"both": b"base\n", "plain": TEN}, {"both": b"run's\n", "plain": b"p\n", "new": b"n\n"}
    assert set(pull(folder, entries, start, end).conflicts) == {"both"}
    assert tree(folder) == before
    assert sorted(os.listdir(folder)) == ["both", "plain"]
    assert set(pull(folder, entries, start, end, reject=True).conflicts) == {"both"}
    assert tree(folder) == {"both": b"mine\n", "plain": b"p\n", "new": b"n\n"}
    assert not pull(folder, entries, start, end, force=True).conflicts
    assert tree(folder) == end


REFUSED: dict[str, tuple[Callable[[Path], object], Entry]] = {
    "removed here": (lambda f: None, entry("file")),
    "edited here, removed there": (lambda f: (f / "file").write_bytes(b"mine\n"), entry("file", "deleted")),
    "both edited bytes": (lambda f: (f / "file").write_bytes(b"\0mine"), entry("file")),
    "read-only": (lambda f: ((f / "file").write_bytes(b"base\n"), (f / "file").chmod(0o444)), entry("file")),
}
NEVER: dict[str, tuple[Callable[[Path], object], Entry]] = {
    "new here and there": (lambda f: (f / "file").write_bytes(b"mine\n"), entry("file", "added")),
    "a link": (lambda f: (f / "file").symlink_to(f.parent / "victim"), entry("file")),
    "a dangling link": (lambda f: (f / "file").symlink_to(f.parent / "nothing"), entry("file", "added")),
    "a folder": (lambda f: (f / "file").mkdir(), entry("file", "added")),
    "a pipe": (lambda f: os.mkfifo(f / "file"), entry("file")),
    "behind a link": (lambda f: (f / "sub").symlink_to(f.parent), entry("sub/victim")),
    "behind a link, removed": (lambda f: (f / "sub").symlink_to(f.parent), entry("sub/victim", "deleted")),
    "behind a link, new": (lambda f: (f / "sub").symlink_to(f.parent), entry("sub/new", "added")),
    "behind a file": (lambda f: (f / "sub").write_bytes(b"x"), entry("sub/new", "added")),
    "onto another file": (
        lambda f: ((f / "old").write_bytes(b"base\n"), (f / "file").write_bytes(b"mine\n")),
        entry("file", "renamed", "old"),
    ),
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("case", [*REFUSED, *NEVER])
def test_a_path_that_must_not_be_written_is_in_conflict(folder: Path, case: str, force: bool) -> None:
    prepare, change = (REFUSED | NEVER)[case]
    victim = folder.parent / "victim"
    victim.write_bytes(b"base\n")
    prepare(folder)
    before = sorted(os.listdir(folder)), tree(folder)
    side = {change.path: b"base\n", change.old_path or "": b"base\n"}
    outcome = pull(folder, [change], side, {change.path: b"run's\n"}, force=force)
    assert victim.read_bytes() == b"base\n"
    assert sorted(os.listdir(folder.parent)) == ["project", "victim"]
    if force and case in REFUSED:
        assert not outcome.conflicts
    else:
        assert list(outcome.conflicts) == [change.path]
        assert (sorted(os.listdir(folder)), tree(folder)) == before


@pytest.mark.parametrize(
    "path",
    ["../out", "a/../../out", "/etc/out", ".git/config", "a/.GIT/hooks/x", ".git", ".git /x", "a//b", "./a", "a/."],
)
@pytest.mark.parametrize("trust", [False, True])
def test_changes_outside_the_folder_or_in_a_git_directory_are_refused_whole(
    folder: Path, path: str, trust: bool
) -> None:
    entries = [entry("plain", "added"), entry(path, "added")]
    with pytest.raises(errors.NotWritten):
        pull(folder, entries, {}, {"plain": b"x", path: b"x"}, trust=trust)
    with pytest.raises(errors.NotWritten):
        pull(folder, [entry("plain", "renamed", path)], {path: b"x"}, {"plain": b"x"}, trust=trust)
    assert not os.listdir(folder)


@pytest.mark.parametrize("path", [".claude/settings.json", ".CLAUDE/commands/x.md", "a/.mcp.json", ".MCP.json"])
def test_files_that_run_programs_are_left_out_and_named(folder: Path, path: str) -> None:
    entries, end = [entry("plain", "added"), entry(path, "added")], {"plain": b"p", path: b"x"}
    assert set(pull(folder, entries, {}, end).left_out) == {path}
    assert tree(folder) == {"plain": b"p"}
    assert not pull(folder, entries, {}, end, trust=True).left_out
    assert tree(folder) == end


@pytest.mark.parametrize("modes", [{"mode": "120000"}, {"mode": "100644", "old_mode": "120000"}, {"mode": "160000"}])
def test_links_are_left_out_and_named(folder: Path, modes: dict[str, str]) -> None:
    outcome = pull(folder, [entry("link", **modes)], {"link": b"a"}, {"link": b"/etc/passwd"})
    assert set(outcome.left_out) == {"link"}
    assert not os.listdir(folder)


def test_without_git_edits_on_both_sides_are_in_conflict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (folder / "both").write_bytes(TEN.replace(b"line 0", b"mine"))
    (folder / "plain").write_bytes(TEN)
    start = {"both": TEN, "plain": TEN}
    assert set(pull(folder, [entry("both")], start, {"both": TEN + b"x\n"}).conflicts) == {"both"}
    assert not pull(folder, [entry("plain")], start, {"plain": b"p\n"}).conflicts


def test_a_read_only_folder_is_a_conflict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    # The superuser may write everywhere, so the answer for others is given here.
    monkeypatch.setattr(tree_update.os, "access", lambda *_, **__: False)
    outcome = pull(folder, [entry("sub/new", "added")], {}, {"sub/new": b"x"})
    assert set(outcome.conflicts) == {"sub/new"}


def test_an_edit_during_the_pull_undoes_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (folder / name).write_bytes(TEN)
    real = kernel.sync_filesystem
    monkeypatch.setattr(
        tree_update.kernel, "sync_filesystem", lambda path: ((folder / "b").write_bytes(b"mine\n"), real(path))
    )
    with pytest.raises(errors.NotWritten):
        pull(folder, [entry("a"), entry("b")], {"a": TEN, "b": TEN}, {"a": b"1\n", "b": b"2\n"})
    assert tree(folder) == {"a": TEN, "b": b"mine\n"}


@pytest.mark.parametrize("exchange", ["atomic", "plain"])
def test_a_pull_that_is_killed_at_any_point_is_finished_or_undone_by_the_next(tmp_path: Path, exchange: str) -> None:
    before = {name: name.encode() for name in ("edited", "gone/only", "old")}
    after = {"edited": b"e", "new/file": b"n", "moved": b"old"}
    seen = set()
    for point in range(0, 400, 3):
        folder = tmp_path / str(point)
        for name, content in before.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        pid = os.fork()
        if pid == 0:
            _pull_and_die(folder, point, exchange, before, after)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL)
        sent = {path.relative_to(folder).parts[0] for path in gitignore.files_to_send(folder) if path.is_file()}
        assert WORK not in sent, "nothing of a pull is ever sent"
        sentence = tree_update.recover(folder)
        found = tree(folder)
        assert found in (before, after), point
        assert not (folder / WORK).exists()
        seen.add((found == after, sentence is not None))
        if code == 0:
            break
    assert code == 0
    assert seen >= {(False, False), (True, True), (True, False)}


def _pull_and_die(folder: Path, point: int, exchange: str, start: dict[str, bytes], end: dict[str, bytes]) -> None:
    """Run a pull in this process, a child, that is killed before its call of the system of this number."""
    left = [point]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    def unable(*_: object) -> None:
        raise OSError(errno.EINVAL, "unable")

    try:
        if exchange == "plain":
            kernel.exchange = unable
        for name in ("rename", "link", "unlink", "mkdir", "fsync", "rmdir", "open"):
            setattr(os, name, counted(getattr(os, name)))
        renamed = entry("moved", "renamed", "old")
        pull(folder, [entry("edited"), entry("new/file", "added"), entry("gone/only", "deleted"), renamed], start, end)
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_a_pull_that_was_killed_and_edited_since_is_undone(folder: Path) -> None:
    (folder / "a").write_bytes(TEN)
    (folder / "b").write_bytes(TEN)
    with TreeUpdate(folder) as update:
        update.write("a", merging.digest(TEN), b"1\n", 0o644)
        update.write("b", merging.digest(TEN), b"2\n", 0o644)
        _leave_journal(update)
    (folder / "b").write_bytes(b"mine\n")
    sentence = tree_update.recover(folder)
    assert sentence is not None
    assert "undone" in sentence
    assert tree(folder) == {"a": TEN, "b": b"mine\n"}


def test_edits_that_forbid_both_are_named_and_nothing_is_lost(folder: Path) -> None:
    (folder / "a").write_bytes(TEN)
    (folder / "b").write_bytes(TEN)
    with TreeUpdate(folder) as update:
        update.write("a", merging.digest(TEN), b"1\n", 0o644)
        update.write("b", merging.digest(TEN), b"2\n", 0o644)
        _leave_journal(update)
        tree_update._do_one(update._root, update._work, 0, update._steps[0])
    (folder / "a").write_bytes(b"mine\n")
    (folder / "b").write_bytes(b"mine\n")
    with pytest.raises(errors.NotWritten, match=r"a\b"):
        tree_update.recover(folder)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes() == b"mine\n"
    assert TEN in tree(folder / WORK).values()


def _leave_journal(update: TreeUpdate) -> None:
    """Leave the state of a pull that was killed after its journal was stored."""
    steps = [vars(step) for step in update._steps]
    tree_files.store(update._work, "journal", json.dumps(steps).encode(), 0o600)


def test_what_takes_the_name_of_the_staging_folder_stops_the_pull(folder: Path, tmp_path: Path) -> None:
    (folder / WORK).symlink_to(tmp_path)
    with pytest.raises(errors.NotWritten):
        pull(folder, [entry("new", "added")], {}, {"new": b"x"})
    assert sorted(os.listdir(tmp_path)) == ["project"]


def test_a_merge_obeys_no_configuration_of_a_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(folder)], check=True, capture_output=True)
    monkeypatch.setenv("GIT_DIR", str(folder / ".git"))
    assert merging.merge(b"a\nx\n", b"a\n", b"a\n") == b"a\nx\n"


def test_a_patch_is_coloured_and_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = "".join(diff._coloured(["@@ -1 +1 @@", "-a", "+b\x1b]0;title\x07", " c\x1b[2J"]))
    assert click.unstyle(shown) == "@@ -1 +1 @@\n-a\n+b\\x1b]0;title\\x07\n c\\x1b[2J\n"
    assert shown.count("\x1b[") == 6
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in "".join(diff._coloured(["+a"]))


# -- with an agent


@pytest.fixture
def sent(agent: Occ, folder: Path) -> str:
    """The execution that changed the files of `folder` on an agent."""
    (folder / "edited").write_bytes(TEN)
    (folder / "plain").write_bytes(b"as it was\n")
    text = TEN.decode().replace("line 9", "run's")
    prompt = steps(
        {"write": "edited", "text": text}, {"write": "new", "text": "n\n"}, {"write": ".mcp.json", "text": "{}"}
    )
    done = agent.command("run", "--dir", str(folder), prompt)
    assert "3 files changed (+3 \N{MINUS SIGN}1)" in done.stderr
    found = re.search(r"occ pull (run-\w+)", done.stderr)
    assert found is not None
    return found[1]


def test_the_results_of_a_run_come_home_and_are_merged(agent: Occ, folder: Path, sent: str) -> None:
    (folder / "edited").write_bytes(TEN.replace(b"line 0", b"mine"))
    done = agent.command("pull", sent, "--dir", str(folder))
    assert "2 written" in done.stdout
    assert "left out" in done.stderr
    assert ".mcp.json" in done.stderr
    assert tree(folder) == {
        "edited": TEN.replace(b"line 0", b"mine").replace(b"line 9", b"run's"),
        "plain": b"as it was\n",
        "new": b"n\n",
    }
    agent.command("pull", sent, "--dir", str(folder), "--trust")
    assert (folder / ".mcp.json").read_bytes() == b"{}"


def test_a_pull_in_conflict_writes_nothing_and_names_the_files(agent: Occ, folder: Path, sent: str) -> None:
    (folder / "edited").write_bytes(TEN.replace(b"line 9", b"mine"))
    before = tree(folder)
    refused = agent.command("pull", sent, "--dir", str(folder), check=False)
    assert refused.returncode == 1
    assert "edited" in refused.stderr
    assert tree(folder) == before
    rejected = agent.command("pull", sent, "--dir", str(folder), "--reject", check=False, TMPDIR=str(folder.parent))
    assert rejected.returncode == 1
    assert tree(folder) == before | {"new": b"n\n"}
    (patch,) = folder.parent.glob("occ-rejected-*/*.patch")
    assert b"+run's" in patch.read_bytes()
    agent.command("pull", sent, "--dir", str(folder), "--force")
    assert b"run's" in (folder / "edited").read_bytes()


def test_the_patch_of_a_run_is_shown_and_applies(agent: Occ, folder: Path, sent: str) -> None:
    assert agent.command("diff", "--stat").stdout.splitlines()[-1] == "3 files changed (+3 \N{MINUS SIGN}1)"
    patch = agent.command("diff", sent).stdout
    subprocess.run(["git", "apply", "--binary"], cwd=folder, input=patch.encode(), check=True)
    assert (folder / "edited").read_bytes() == TEN.replace(b"line 9", b"run's")


def test_a_run_can_write_its_changes_at_once(agent: Occ, folder: Path) -> None:
    (folder / "a").write_text("a\n")
    prompt = steps({"write": "a", "text": "b\n"}, {"say": "done"})
    agent.command("run", "--dir", str(folder), "--apply", prompt)
    assert tree(folder) == {"a": b"b\n"}
    agent.command(
        "run", "--dir", str(folder), "--apply", steps({"write": "a", "text": "c\n"}, {"exit": 3}), check=False
    )
    assert tree(folder) == {"a": b"b\n"}, "a run that failed is not applied"


def test_an_interrupted_pull_is_finished_before_the_folder_is_sent(agent: Occ, folder: Path) -> None:
    (folder / "a").write_bytes(TEN)
    with TreeUpdate(folder) as update:
        update.write("a", merging.digest(TEN), b"new\n", 0o644)
        _leave_journal(update)
    agent.command("run", "--dir", str(folder), "hello")
    assert tree(folder) == {"a": b"new\n"}
    newest = agent.client.executions(limit=1)["executions"][0]["workspaceId"]
    assert (agent.home / "workspaces" / newest / "a").read_bytes() == b"new\n"


def test_a_restore_is_undone_by_the_command_that_it_prints(agent: Occ, folder: Path, sent: str) -> None:
    there = agent.home / "workspaces" / agent.client.execution(sent)["workspaceId"]
    done = agent.command("restore", sent)
    assert "3 files restored" in done.stdout
    assert not (there / "new").exists()
    found = re.search(r"undo this with: occ (restore restore-\w+)", done.stderr)
    assert found is not None
    undone = agent.command(*found[1].split())
    assert "3 files restored" in undone.stdout
    assert (there / "new").read_bytes() == b"n\n"
    unknown = agent.command("restore", "restore-0123456789ab", check=False)
    assert unknown.returncode == 4
    assert "restore-0123456789ab" in unknown.stderr


def test_the_patch_of_a_run_without_changes_is_empty_and_says_so(agent: Occ, folder: Path) -> None:
    (folder / "a").write_text("a\n")
    assert sentences.NO_FILES_CHANGED in agent.command("run", "--dir", str(folder), steps({"say": "done"})).stderr
    shown = agent.command("diff")
    assert (shown.stdout, sentences.NO_FILES_CHANGED in shown.stderr) == ("", True)


def test_a_number_comes_with_its_noun() -> None:
    assert [output.counted(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


def test_the_commands_at_the_end_of_a_run_name_its_folder(agent: Occ, folder: Path) -> None:
    (folder / "a").write_text("a\n")
    done = agent.command("run", "--dir", str(folder), steps({"write": "a", "text": "b\n"}, {"say": "done"}))
    assert re.search(rf"occ pull run-\w+ --dir {folder}$", done.stderr, re.MULTILINE)
    assert f'occ run --dir {folder} -c "…"' in done.stderr
    (folder / "a").write_text("c\n")
    stopped = agent.command("run", "-c", "--dir", str(folder), "more", check=False)
    assert f"`occ pull --dir {folder}`" in stopped.stderr


def test_no_folder_is_named_where_it_is_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folders.option(None) == folders.option(Path()) == folders.option(tmp_path) == ""
    assert folders.option(Path("my project")) == " --dir 'my project'"


def test_a_folder_that_was_never_sent_gets_nothing_unasked(agent: Occ, folder: Path, sent: str) -> None:
    other = folder.parent / "other"
    other.mkdir()
    refused = agent.command("pull", "--dir", str(other), check=False)
    assert refused.returncode == 2
    assert "--last" in refused.stderr
    assert not os.listdir(other)
    agent.command("pull", "--last", "--dir", str(other), "--force")
    assert sorted(os.listdir(other)) == ["edited", "new"]


@pytest.mark.parametrize("command", ["pull", "pull ID", "run"])
def test_in_a_subfolder_the_folder_that_was_sent_is_named(agent: Occ, folder: Path, sent: str, command: str) -> None:
    (folder / "sub").mkdir()
    arguments = {"pull": ("pull",), "pull ID": ("pull", sent), "run": ("run", "-c", "more")}[command]
    before = len(agent.client.executions()["executions"])
    refused = agent.command(*arguments, "--dir", str(folder / "sub"), check=False)
    assert refused.returncode == 2
    assert f"is in {folder}, {sentences.WHICH_WAS_SENT}" in refused.stderr
    assert not os.listdir(folder / "sub")
    assert len(agent.client.executions()["executions"]) == before


def test_a_run_of_a_project_is_not_pulled(agent: Occ, tmp_path: Path) -> None:
    project, home = tmp_path / "mine", tmp_path / "elsewhere"
    project.mkdir()
    home.mkdir()
    (project / "a").write_text("a\n")
    agent.command("projects", "add", str(project))
    agent.command("run", "--project", "mine", steps({"write": "a", "text": "b\n"}, {"say": "done"}))
    refused = agent.command("pull", "--last", "--dir", str(home), check=False)
    assert refused.returncode == 2
    assert "in place" in refused.stderr
    assert not os.listdir(home)


@pytest.mark.parametrize("command", [("diff",), ("diff", "--stat"), ("pull",), ("restore",)])
def test_the_changes_of_a_run_that_goes_on_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    class Going:
        def executions(self, **_: object) -> dict[str, object]:
            return {"executions": [{"executionId": "run-1"}]}

        def execution(self, _: str) -> dict[str, object]:
            return {"executionId": "run-1", "workspaceId": "w", "state": "running", "finishedAt": None}

    monkeypatch.setattr(remote, "chosen", lambda *_: Going())
    monkeypatch.setattr(remote, "place_name", lambda *_: "here")
    done = CliRunner().invoke(commands.occ, [*command, "--last"])
    assert isinstance(done.exception, errors.NotFound)
    assert str(done.exception) == f"run-1 {sentences.HAS_NOT_ENDED_YET} `occ jobs tail --follow run-1`."


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_run_that_failed_prints_its_error_and_no_reason_for_missing_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], succeeded: bool
) -> None:
    def none(*_: object) -> None:
        raise errors.Refused("The changes are not available.", 404, "CHANGES_NOT_FOUND")

    monkeypatch.setattr(diff.results, "changes", none)
    assert diff.changes_of(AgentClient("http://127.0.0.1:1", ""), "run-1", succeeded=succeeded) is None
    assert ("not available" in capsys.readouterr().err) == succeeded


def test_an_applied_run_prints_the_sums_before_the_result_and_no_hint_to_pull(agent: Occ, folder: Path) -> None:
    (folder / "a").write_text("a\n")
    change = steps({"write": "a", "text": "b\n"}, {"say": "done"})
    done = agent.command("run", "--dir", str(folder), "--apply", change)
    order = [done.stderr.index(text) for text in ("1 file changed", "Files: 1 written.", "go on with")]
    assert order == sorted(order)
    assert "occ pull" not in done.stderr
    failed = steps({"write": "a", "text": "c\n"}, {"exit": 3})
    assert "occ pull run-" in agent.command("run", "--dir", str(folder), "--apply", failed, check=False).stderr


def test_files_left_out_are_not_said_to_be_there(agent: Occ, folder: Path) -> None:
    (folder / "a").write_text("a\n")
    agent.command("run", "--dir", str(folder), steps({"write": "a", "text": "b\n"}, {"say": "done"}))
    (folder / "a").write_text("mine\n")
    rejected = agent.command("pull", "--dir", str(folder), "--reject", check=False, TMPDIR=str(folder.parent))
    assert sentences.HAS_THESE_CHANGES_ALREADY not in rejected.stdout + rejected.stderr
    assert f"{sentences.NOTHING_WAS_WRITTEN} 1 {sentences.FILE_WAS_LEFT_AS_IT_IS}." in rejected.stdout
