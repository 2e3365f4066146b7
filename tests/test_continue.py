"""`occ run -c`: the same workspace and conversation, with the edits of the folder, and never over the edits there."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import zipfile
from pathlib import Path
from typing import IO, cast

import pytest

from occ_app import errors
from occ_app.cli import catch_up, folders, merging, remotes, user_state, workspaces
from occ_app.client.agent_client import AgentClient
from occ_app.executions import queries as executions
from tests import sentences
from tests.conftest import Occ, steps
from tests.real_hub import hub_in


@pytest.fixture
def folder(agent: Occ, tmp_path: Path) -> Path:
    """A folder that was sent to the agent, where a run changed nothing."""
    made = tmp_path / "project"
    made.mkdir()
    for name in ("kept", "edited", "gone"):
        (made / name).write_text(f"{name}\n")
    agent.command("run", "--dir", str(made), steps({"say": "first"}))
    return made


def workspace(agent: Occ) -> Path:
    """The folder of the workspace that was sent."""
    (found,) = [each for each in agent.client.workspaces() if each["workspaceId"].startswith("project-")]
    return agent.home / "workspaces" / found["workspaceId"]


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_a_run_continues_in_the_same_workspace_and_session(agent: Occ, folder: Path) -> None:
    agent.command("run", "-c", "--dir", str(folder), "more")
    second, first = agent.client.executions(limit=2)["executions"]
    assert second["workspaceId"] == first["workspaceId"]
    assert executions.get(agent.database, second["executionId"]).resume_session_id == first["sessionId"]


def test_edits_are_sent_first(agent: Occ, folder: Path) -> None:
    (folder / "edited").write_text("mine\n")
    (folder / "new").write_text("new\n")
    (folder / "gone").unlink()
    done = agent.command("run", "-c", "--dir", str(folder), "more")
    assert f"{sentences.SENT_YOUR_CHANGES}: 2 files, 1 removed" in done.stderr
    assert files(workspace(agent)) == {"kept": "kept\n", "edited": "mine\n", "new": "new\n"}
    assert sentences.SENT_YOUR_CHANGES not in agent.command("run", "-c", "--dir", str(folder), "again").stderr


def test_edits_on_both_sides_stop_the_run_until_they_are_pulled(agent: Occ, folder: Path) -> None:
    agent.command("run", "-c", "--dir", str(folder), steps({"write": "edited", "text": "run's\n"}))
    agent.command("run", "-c", "--dir", str(folder), steps({"write": "new", "text": "new\n"}))
    (folder / "kept").write_text("mine\n")
    before = len(agent.client.executions()["executions"])
    stopped = agent.command("run", "-c", "--dir", str(folder), "more", check=False)
    assert stopped.returncode == 1
    assert "occ pull" in stopped.stderr
    assert len(agent.client.executions()["executions"]) == before
    agent.command("pull", "--dir", str(folder))  # of both runs
    assert files(folder) == {"kept": "mine\n", "edited": "run's\n", "gone": "gone\n", "new": "new\n"}
    agent.command("run", "-c", "--dir", str(folder), "more")
    assert files(workspace(agent)) == files(folder)
    assert sentences.NOTHING_TO_WRITE in agent.command("pull", "--dir", str(folder)).stdout


def test_a_restore_changes_the_workspace_as_a_run_does(agent: Occ, folder: Path) -> None:
    first = steps({"write": "edited", "text": "one\n"}, {"write": "new", "text": "n\n"}, {"say": "ok"})
    agent.command("run", "-c", "--dir", str(folder), "--apply", first)
    undone = agent.client.executions(limit=1)["executions"][0]["executionId"]
    agent.command(
        "run", "-c", "--dir", str(folder), "--apply", steps({"write": "kept", "text": "two\n"}, {"say": "ok"})
    )
    agent.command("restore", undone)
    assert f"`occ pull --dir {folder}`" in agent.command("run", "-c", "--dir", str(folder), "more").stderr
    (folder / "gone").write_text("mine\n")
    stopped = agent.command("run", "-c", "--dir", str(folder), "more", check=False)
    assert stopped.returncode == 1
    assert f"`occ pull --dir {folder}`" in stopped.stderr
    pulled = agent.command("pull", "--dir", str(folder))
    assert "Files: 1 written, 1 removed." in pulled.stdout
    assert files(folder) == {"kept": "two\n", "edited": "edited\n", "gone": "mine\n"}
    assert sentences.NOTHING_TO_WRITE in agent.command("pull", "--dir", str(folder)).stdout
    done = agent.command("run", "-c", "--dir", str(folder), "more")
    assert f"{sentences.SENT_YOUR_CHANGES}: 1 file, 0 removed" in done.stderr
    assert files(workspace(agent)) == files(folder)


def test_a_restore_in_conflict_with_edits_writes_nothing(agent: Occ, folder: Path) -> None:
    write = steps({"write": "edited", "text": "one\n"}, {"write": "new", "text": "n\n"}, {"say": "ok"})
    agent.command("run", "-c", "--dir", str(folder), "--apply", write)
    agent.command("restore", "--last")
    (folder / "edited").write_text("mine\n")
    before = files(folder)
    stopped = agent.command("pull", "--dir", str(folder), check=False)
    assert stopped.returncode == 1
    assert "edited" in stopped.stderr
    assert files(folder) == before
    rejected = agent.command("pull", "--dir", str(folder), "--reject", check=False, TMPDIR=str(folder.parent))
    assert rejected.returncode == 1
    assert files(folder) == {"kept": "kept\n", "edited": "mine\n", "gone": "gone\n"}
    (version,) = folder.parent.glob("occ-rejected-*/*-edited.workspace")
    assert version.read_text() == "edited\n"
    agent.command("run", "-c", "--dir", str(folder), "more")
    assert files(workspace(agent)) == files(folder)


def test_a_run_that_was_undone_before_it_was_pulled_is_not_brought(agent: Occ, folder: Path) -> None:
    agent.command("run", "-c", "--dir", str(folder), steps({"write": "edited", "text": "one\n"}, {"say": "ok"}))
    agent.command("restore", "--last")
    assert sentences.NOTHING_TO_WRITE in agent.command("pull", "--dir", str(folder)).stdout
    assert files(folder)["edited"] == "edited\n"


def test_a_folder_that_was_never_sent_cannot_be_continued(agent: Occ, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert agent.command("run", "-c", "--dir", str(tmp_path / "other"), "more", check=False).returncode == 2


def test_a_removed_workspace_is_named_and_nothing_is_sent(agent: Occ, folder: Path) -> None:
    agent.client.delete_workspace(workspace(agent).name)
    stopped = agent.command("run", "-c", "--dir", str(folder), "more", check=False)
    assert stopped.returncode == 1
    assert "without -c" in stopped.stderr


def test_the_memory_is_in_the_user_s_state_and_closed_to_others(agent: Occ, folder: Path) -> None:
    kept = Path(agent.environment["HOME"], ".local/state/occ")
    stored = [path for path in kept.iterdir() if re.fullmatch(r"folder-\w+\.json", path.name)]
    named = [json.loads(path.read_text())["folder"] for path in stored]
    assert str(folder) in named
    assert {stat.S_IMODE(path.stat().st_mode) for path in stored} == {0o600}
    assert sorted(files(folder)) == ["edited", "gone", "kept"]


def test_a_zip_of_a_workspace_is_not_left_in_a_project(agent: Occ, folder: Path) -> None:
    name = workspace(agent).name
    refused = agent.command("workspaces", "fetch", name, str(folder / "copy.zip"), check=False)
    assert refused.returncode == 2
    assert not (folder / "copy.zip").exists()
    (folder / ".git").mkdir()
    assert agent.command("workspaces", "fetch", name, str(folder / "sub.zip"), check=False).returncode == 2
    agent.command("workspaces", "fetch", name, str(folder.parent / "copy.zip"))
    assert (folder.parent / "copy.zip").exists()


@pytest.mark.parametrize("mark", ["git", "sent"])
def test_the_default_for_a_zip_is_beside_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    (tmp_path / "project/sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project/sub")
    assert workspaces._outside("a.zip") == Path("a.zip")
    if mark == "git":
        (tmp_path / "project/.git").mkdir()
    else:
        folders.remember(tmp_path / "project")
    assert workspaces._outside("a.zip") == tmp_path / "a.zip"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    done = subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A work tree with two commits, a tag, a hook, a setting, an edit, and objects that another repository has."""
    first, made = tmp_path / "first", tmp_path / "project"
    git(tmp_path, "init", "-q", "-b", "main", str(first))
    (first / "a").write_text("one\n")
    git(first, "add", "a")
    git(first, "commit", "-qm", "one")
    git(tmp_path, "clone", "-q", "--shared", str(first), str(made))
    (made / "a").write_text("two\n")
    git(made, "commit", "-qam", "two")
    git(made, "tag", "v1")
    git(made, "config", "core.fsmonitor", f"touch {tmp_path}/ran; false")
    hook = made / ".git/hooks/post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    (made / "a").write_text("edited\n")
    return made


def test_the_history_is_sent_without_configuration_and_hooks(agent: Occ, repository: Path, tmp_path: Path) -> None:
    done = agent.command("run", "--git", "--dir", str(repository), "hello")
    assert "left out" not in done.stderr
    there = workspace(agent)
    assert git(there, "log", "--format=%s").split() == ["two", "one"]
    assert git(there, "describe", "--tags") == "v1\n"
    assert git(there, "branch", "--show-current") == "main\n"
    assert git(there, "status", "--porcelain") == " M a\n"
    names = {path.relative_to(there / ".git").as_posix() for path in (there / ".git").rglob("*")}
    assert not names & {"config", "hooks", "objects/info/alternates", "logs", "description"}
    assert "remote" not in git(there, "for-each-ref")
    assert not (tmp_path / "ran").exists()
    again = agent.command("run", "-c", "--dir", str(repository), "more")
    assert sentences.SENT_YOUR_CHANGES not in again.stderr
    assert git(there, "log", "--format=%s").split() == ["two", "one"]


@pytest.mark.parametrize("case", ["no repository", "no commit", "a folder in one", "with -c", "with --workspace"])
def test_a_history_that_cannot_be_sent_is_refused(agent: Occ, repository: Path, tmp_path: Path, case: str) -> None:
    (repository / "sub").mkdir()
    (tmp_path / "plain").mkdir()
    git(tmp_path, "init", "-q", str(tmp_path / "empty"))
    arguments = {
        "no repository": ("--dir", str(tmp_path / "plain")),
        "no commit": ("--dir", str(tmp_path / "empty")),
        "a folder in one": ("--dir", str(repository / "sub")),
        "with -c": ("-c", "--dir", str(repository)),
        "with --workspace": ("--workspace", "work"),
    }[case]
    assert agent.command("run", "--git", *arguments, "hello", check=False).returncode == 2
    assert [each["workspaceId"] for each in agent.client.workspaces()] == ["work"]


def test_edits_reach_the_machine_of_a_hub(tmp_path: Path) -> None:
    with hub_in(tmp_path) as hub:
        hub.start()
        box = hub.agent("box")
        made = tmp_path / "project"
        (made / "sub").mkdir(parents=True)
        (made / "sub/gone").write_text("g\n")
        (made / "a").write_text("a\n")
        place = {"OCC_URL": hub.url, "OCC_TOKEN": hub.key("me", "client")}
        to = ("--dir", str(made))
        box.command("run", *to, steps({"write": "b", "text": "b\n"}), **place)
        box.command("pull", *to, **place)
        (made / "a").write_text("mine\n")
        (made / "sub/gone").unlink()
        done = box.command("run", "-c", *to, steps({"write": "c", "text": "c\n"}), **place)
        assert f"{sentences.SENT_YOUR_CHANGES}: 1 file, 1 removed" in done.stderr
        (there,) = [path for path in (box.home / "workspaces").iterdir() if path.name.startswith("project-")]
        assert files(there) == {"a": "mine\n", "b": "b\n", "c": "c\n"}
        assert not (there / "sub").exists()
        (made / "a").write_text("again\n")
        stopped = box.command("run", "-c", *to, "x", check=False, **place)
        assert stopped.returncode == 1
        assert "occ pull" in stopped.stderr
        box.command("pull", *to, **place)
        box.command("run", "-c", *to, "x", **place)
        assert files(there) == files(made) == {"a": "again\n", "b": "b\n", "c": "c\n"}
        box.command("run", "-c", *to, steps({"write": "c", "text": "d\n"}), **place)
        undone = box.command("restore", "--last", **place)
        assert files(there)["c"] == "c\n"
        undo = re.search(r"occ (restore restore-\w+)", undone.stderr)
        assert undo is not None
        pulled = box.command("pull", *to, **place)
        assert sentences.NO_RUN_CHANGED not in pulled.stdout
        agreed = box.command("pull", *to, **place)
        assert sentences.NO_RUN_CHANGED in agreed.stdout
        assert sentences.A_HUB_DOES_NOT_KNOW_OF in agreed.stderr
        box.command(*undo[1].split(), **place)
        assert files(there)["c"] == "d\n"


def test_a_run_does_not_fail_where_nothing_can_be_remembered(agent: Occ, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "project").mkdir()
    (tmp_path / "project/a").write_text("a")
    done = agent.command("run", "--dir", str(tmp_path / "project"), "hello", XDG_STATE_HOME=str(tmp_path / "file"))
    assert "You said: hello" in done.stdout
    assert "occ run -c" in done.stderr


def test_a_user_without_a_home_has_no_remotes(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise errors.ConfigError("no home")

    monkeypatch.setattr(user_state.homes, "user_folder", nobody)
    assert remotes.listing() == []
    assert remotes.default() is None


def test_only_files_of_uploads_and_runs_are_compared(tmp_path: Path) -> None:
    """What no upload has, such as settings that run programs, is not removed; what git ignores there is not brought."""

    class Served:
        def archive(self, _: str, output: IO[bytes]) -> None:
            with zipfile.ZipFile(output, "w") as zipped:
                zipped.writestr("same", b"s")
                zipped.writestr("changed", b"there")
                zipped.writestr("made", b"m")
                zipped.writestr("build/ignored", b"i")

    def state(content: bytes) -> tuple[str, bool]:
        return merging.digest(content), False

    known = {"same": state(b"s"), "changed": state(b"here"), "gone": state(b"g"), ".claude/settings.json": state(b"{}")}
    sent = folders.Sent(str(tmp_path), "place", "w", None, "0" * 40, known)
    (tmp_path / "changed").write_bytes(b"here")
    (tmp_path / "gone").write_bytes(b"edited")
    with catch_up.Comparison(cast("AgentClient", Served()), sent, frozenset({"made"})) as compared:
        assert [(each.status, each.path) for each in compared.entries] == [
            ("modified", "changed"),
            ("deleted", "gone"),
            ("added", "made"),
        ]
        assert compared.content("changed", "end") == b"there"
        assert compared.content("changed", "start") == b"here"
        with pytest.raises(merging.InConflict):
            compared.content("gone", "start")
