"""Forgetting old output, draining, and backups."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from occ_app.errors import Refused
from occ_app.executions import retention
from tests import sentences
from tests.conftest import Occ, names, output, steps, wait_until


def age(agent: Occ, execution_id: str, moment: str = "2001-01-01T00:00:00.000Z") -> None:
    with agent.database.write() as connection:
        connection.execute("UPDATE executions SET finished_at = ? WHERE execution_id = ?", (moment, execution_id))


def test_pruned_output_is_gone_and_told_as_a_gap(agent: Occ) -> None:
    events = agent.run(steps({"say": "x", "times": 50}), executionId="old")
    agent.run("new", executionId="new")
    age(agent, "old")
    assert (
        f"{sentences.FORGOT_THE_OUTPUT_OF} 1 execution" in agent.command("jobs", "prune", "--older-than", "2d").stdout
    )
    gap, final = agent.client.events("old")
    assert (gap.name, gap.seq, final) == ("gap", final.seq - 1, events[-1])
    assert gap.data == {"fromSeq": 1, "toSeq": final.seq - 1, "reason": sentences.REMOVED_BY_RETENTION}
    assert [event.data.get("fromSeq") for event in agent.client.events("old", after=10)] == [11, None]
    assert list(agent.client.events("old", after=final.seq - 1)) == [final]
    assert names(list(agent.client.events("old", follow=False))) == ["gap", "complete"]
    record = agent.client.execution("old")
    assert (record["state"], record["prompt"], record["lastSeq"]) == ("succeeded", None, final.seq)
    assert output(list(agent.client.events("new"))) == "You said: new"
    assert sentences.REMOVED_BY_RETENTION in agent.command("jobs", "tail", "old").stderr


def test_a_pruned_id_attaches_and_never_runs_again(agent: Occ) -> None:
    prompt = steps({"write": "ran", "text": ""})
    agent.run(prompt, executionId="once")
    (agent.home / "workspaces/work/ran").unlink()
    age(agent, "once")
    agent.command("jobs", "prune", "--older-than", "1d")
    assert names(agent.run(prompt, executionId="once")) == ["gap", "complete"]
    assert not (agent.home / "workspaces/work/ran").exists()
    with pytest.raises(Refused, match="another body"):
        agent.run("else", executionId="once")


def test_what_runs_or_waits_is_never_pruned(agent: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    stream = agent.client.execute("work", steps({"say": "kept"}, {"wait": str(gate)}), executionId="running")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    assert retention.prune(agent.database, "9999", math.inf).executions == 0
    gate.touch()
    assert list(stream)[-1].name == "complete"


def test_over_its_size_the_oldest_output_goes_first(agent: Occ) -> None:
    for number in range(6):
        agent.run(steps({"say": "y" * 10_000, "times": 20}), executionId=f"e{number}")
    before = agent.database.used_bytes()
    done = retention.enforce(agent.database, 30, before // 2, 10)
    assert agent.database.used_bytes() <= before // 2
    prompts = [agent.client.execution(f"e{number}")["prompt"] for number in range(6)]
    gone = [prompt is None for prompt in prompts]
    assert gone == sorted(gone, reverse=True)
    assert done.executions == sum(gone) > 0


def test_the_daemon_forgets_by_itself(occ: Occ) -> None:
    occ.start()
    occ.workspace()
    occ.run("old", executionId="old")
    age(occ, "old")
    occ.stop()
    occ.start(OCC_RETENTION_DAYS="1")
    wait_until(lambda: occ.client.execution("old")["prompt"] is None, "the old output to be forgotten")


def test_a_drain_waits_for_what_runs_and_starts_nothing_new(occ: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    occ.start(OCC_WORKERS="1")
    occ.workspace()
    stream = occ.client.execute("work", steps({"say": "on"}, {"wait": str(gate)}), executionId="running")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    waiting = occ.client.execute("work", "later", executionId="waiting")
    next(waiting)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(occ.command, "stop", "--drain")
        wait_until(lambda: occ.client.health()["status"] == "degraded", "the drain to begin")
        refused = occ.request("POST", "/execute", json_body={"executionId": "n", "workspaceId": "work", "prompt": "x"})
        assert (refused.status, refused.json()["code"]) == (503, "STOPPING")
        assert refused.headers["Retry-After"]
        assert not stopping.done()
        gate.touch()
        assert list(stream)[-1].name == "complete"
        assert "has stopped" in stopping.result().stdout
    occ.start()
    assert list(occ.client.events("waiting"))[-1].name == "complete"


def test_an_interrupted_drain_takes_work_again(agent: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    stream = agent.client.execute("work", steps({"say": "on"}, {"wait": str(gate)}), executionId="running")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    command = [sys.executable, "-m", "occ_app.cli", "stop", "--drain"]
    with subprocess.Popen(command, env=agent.environment, stderr=subprocess.PIPE, text=True) as drain:
        wait_until(lambda: agent.client.health()["status"] == "degraded", "the drain to begin")
        drain.send_signal(signal.SIGINT)
        assert sentences.IT_TAKES_WORK_AGAIN in drain.communicate(timeout=60)[1]
    assert drain.returncode == 130
    gate.touch()
    assert list(stream)[-1].name == "complete"
    assert agent.run("again")[-1].name == "complete"


def test_a_backup_takes_what_changes_while_it_is_made(agent: Occ, tmp_path: Path) -> None:
    folder = agent.home / "workspaces/work"
    (folder / "link").symlink_to("README.md")
    (folder / "large").write_bytes(os.urandom(20_000_000))
    target = tmp_path / "backup.tar.gz"
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(agent.command, "backup", str(target))
        wait_until(lambda: any(tmp_path.glob(".backup*")), "it to begin")
        while not made.done():
            (folder / "now").write_bytes(os.urandom(1_000_000))
            (folder / "now").write_bytes(b"")
            (folder / "now").unlink()
        assert "Wrote" in made.result().stdout
    names = subprocess.run(["tar", "-tzf", target], capture_output=True, text=True, check=True).stdout.split()
    assert {"state.json", "occ.db", "workspaces/work/large", "workspaces/work/link"} <= set(names)


def test_a_backup_made_while_it_runs_is_the_agent_again(agent: Occ, tmp_path: Path) -> None:
    agent.run(steps({"write": "made.txt", "text": "kept"}), executionId="before")
    stream = agent.client.execute("work", steps({"say": "on"}, {"sleep": 60}), executionId="running")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    next(agent.client.execute("work", "later", executionId="waiting"))
    target = tmp_path / "backup.tar.gz"
    assert "Wrote" in agent.command("backup", str(target)).stdout
    assert target.stat().st_mode & 0o077 == 0
    assert "exists already" in agent.command("backup", str(target), check=False).stderr
    nowhere = agent.command("backup", str(tmp_path / "nowhere" / "backup.tar.gz"), check=False)
    assert sentences.CHOOSE_ANOTHER_PLACE in nowhere.stderr
    agent.client.cancel("running")
    list(stream)
    restored = Occ(tmp_path / "restored", agent.environment | {"OCC_HOME": str(tmp_path / "restored")})
    restored.home.mkdir(mode=0o700)
    subprocess.run(["tar", "-xzf", target, "-C", restored.home], check=True)
    restored.start()
    try:
        assert restored.token == agent.token
        assert list(restored.client.events("before"))[-1].name == "complete"
        for under_way in ("running", "waiting"):
            assert list(restored.client.events(under_way))[-1].data["code"] == "WORKER_LOST"
        shown = json.loads(restored.command("jobs", "--json").stdout)["executions"]
        assert [record["executionId"] for record in shown] == ["waiting", "running", "before"]
        # It works in folders of its own, whatever its rows said.
        assert restored.client.workspace("work")["path"] == str(restored.home / "workspaces/work")
        assert restored.run(steps({"write": "made.txt", "text": "in the copy"}))[-1].name == "complete"
        assert (restored.home / "workspaces/work/made.txt").read_text() == "in the copy"
        restored.client.delete_workspace("work")
        assert (agent.home / "workspaces/work/made.txt").read_text() == "kept"
    finally:
        restored.stop()
        for client in restored.clients:
            client.close()
