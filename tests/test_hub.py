"""The hub with real agents: what an agent does alone, it does through a hub, and more."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
import urllib3

from occ_app.client.agent_client import AgentClient
from occ_app.client.sse import StreamEvent
from occ_app.database import database as db
from occ_app.errors import Refused, Unreachable
from occ_app.executions import queries as executions
from occ_app.hub import placement
from occ_app.hub.agents import Agents
from occ_app.system.process_identity import ProcessIdentity, boot_id, own_identity
from occ_app.workspaces import workspace as workspaces
from tests import sentences
from tests.conftest import Occ, make_zip, names, occ_in, output, steps, wait_until
from tests.real_hub import Hub, hub_in

WAITING = [{"say": "begun "}, {"wait": "go"}, {"say": "done"}]


def run(client: AgentClient, prompt: str, workspace: str = "work", **options: object) -> list[StreamEvent]:
    return list(client.execute(workspace, prompt, **options))


def begun(client: AgentClient, prompt: str, execution_id: str, workspace: str = "work", **options: object):
    """Start a prompt and wait for its first text; returns the stream and what came."""
    stream = client.execute(workspace, prompt, executionId=execution_id, **options)
    seen = [next(stream)]
    while seen[-1].name != "output":
        seen.append(next(stream))
    return stream, seen


def let_go(agent_home: Path, workspace: str = "work") -> None:
    """Let a prompt that waits go on."""
    (agent_home / "workspaces" / workspace / "go").touch()


def test_what_an_agent_says_comes_through_the_hub_event_for_event(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    through = run(hub.client, steps({"say": "one "}, {"say": "two"}), executionId="e1")
    direct = list(box.client.events("e1"))
    assert output(through) == "one two"
    assert through[1:] == direct[1:]
    assert [event.seq for event in through] == list(range(1, len(through) + 1))
    record = hub.client.execution("e1")
    assert record["state"] == "succeeded"
    assert record["agentId"] == hub.seen("box")["agentId"]
    assert record["costUsd"] == 0.25


def test_the_same_request_again_follows_the_same_execution_on_hub_and_agent(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    first = run(hub.client, steps({"say": "once"}), executionId="e1")
    assert run(hub.client, steps({"say": "once"}), executionId="e1") == first
    assert len(box.client.executions()["executions"]) == 1
    with pytest.raises(Refused) as refused:
        run(hub.client, steps({"say": "other"}), executionId="e1")
    assert refused.value.code == "EXECUTION_CONFLICT"


def test_a_machine_is_online_while_it_beats_and_keeps_its_id_when_it_returns(hub: Hub) -> None:
    box = hub.agent("box", "--label", "gpu")
    seen = hub.seen("box")
    assert (seen["via"], seen["labels"], seen["workers"]["total"]) == ("link", ["gpu"], 2)
    wait_until(lambda: hub.seen("box")["state"] == "online", "it to beat")
    box.stop()
    # Its last beat says so, unless the hub took too long to answer it; test_machines.py has that beat by itself.
    wait_until(lambda: hub.seen("box")["state"] == "offline", "it to be offline")
    box.start()
    wait_until(lambda: hub.seen("box")["state"] == "online", "it is back")
    assert hub.seen("box")["agentId"] == seen["agentId"]
    box.kill("control")  # it would send a last heartbeat; when a silence counts is in test_machines.py
    wait_until(lambda: hub.seen("box")["state"] == "offline", "two beats were missed")
    box.start()
    wait_until(lambda: hub.seen("box")["state"] == "online", "it is back")
    assert hub.seen("box")["agentId"] == seen["agentId"]


def test_a_workspace_lives_where_it_first_ran(hub: Hub) -> None:
    hub.agent("one", OCC_WORKERS="1")
    two = hub.agent("two", OCC_WORKERS="3", OCC_LABELS="gpu,eu")
    reply = hub.client.upload("work", make_zip({"a.txt": "a"}))
    assert reply["agentId"] is None
    run(hub.client, steps({"write": "b.txt", "text": "b"}), executionId="e1")
    at = hub.client.workspace("work")
    assert at["agentId"] == hub.seen("two")["agentId"]  # it had the most free workers
    assert at["path"] == str(two.home / "workspaces" / "work")
    assert (two.home / "workspaces" / "work" / "b.txt").read_text() == "b"
    for wanted in ({"agent": "one"}, {"labels": ["us"]}):
        with pytest.raises(Refused) as refused:
            run(hub.client, "hello", **wanted)
        assert (refused.value.status, refused.value.code) == (409, "WORKSPACE_ELSEWHERE")
    assert output(run(hub.client, "hello", agent="two", labels=["eu"]))
    packed = io.BytesIO()
    hub.client.archive("work", packed)
    assert zipfile.ZipFile(packed).read("b.txt") == b"b"


def test_labels_and_names_choose_the_machine(hub: Hub) -> None:
    hub.agent("one", "--label", "eu", OCC_WORKERS="5")
    hub.agent("two", "--label", "eu", "--label", "gpu", OCC_WORKERS="1")
    for number, (wanted, expected) in enumerate(
        [({"labels": ["gpu"]}, "two"), ({"labels": ["eu"]}, "one"), ({"agent": "two"}, "two")]
    ):
        hub.client.upload(f"w{number}", make_zip({"a.txt": "a"}))
        run(hub.client, "hello", f"w{number}", executionId=f"e{number}", **wanted)
        assert hub.client.execution(f"e{number}")["agentId"] == hub.seen(expected)["agentId"]
    with pytest.raises(Refused) as refused:
        run(hub.client, "hello", "w0", agent="nobody")
    assert (refused.value.status, refused.value.code) == (404, "AGENT_NOT_FOUND")


def test_what_no_machine_can_take_waits_and_says_for_what(hub: Hub) -> None:
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    stream = hub.client.execute("work", "hello", executionId="e1", labels=["gpu"])
    assert next(stream).name == "queued"
    gpu = f"{sentences.AN_AGENT_WITH_THE_LABELS} gpu {sentences.TO_BE_ONLINE}"
    wait_until(lambda: hub.client.execution("e1")["waitsFor"] == gpu, "the reason")
    box = hub.agent("box", "--label", "gpu", OCC_WORKERS="1")
    assert names(list(stream))[-1] == "complete"
    hub.client.upload("named", make_zip({"a.txt": "a"}))
    next(hub.client.execute("named", "hello", executionId="e0", agent="box", labels=["gpu", "tpu"]))
    both = f"agent box {sentences.TO_HAVE_THE_LABELS} gpu, tpu"
    wait_until(lambda: hub.client.execution("e0")["waitsFor"] == both, "the reason")
    hub.client.upload("other", make_zip({"a.txt": "a"}))
    busy, _ = begun(hub.client, steps(*WAITING), "e2")
    waiting = hub.client.execute("other", "hello", executionId="e3")
    assert next(waiting).name == "queued"
    wait_until(
        lambda: hub.client.execution("e3")["waitsFor"] == f"an agent {sentences.TO_HAVE_A_FREE_WORKER}", "the reason"
    )
    let_go(box.home)
    assert names(list(busy))[-1] == names(list(waiting))[-1] == "complete"
    assert hub.client.execution("e3")["waitsFor"] is None


def test_who_waits_too_long_for_a_machine_is_told_so(tmp_path: Path) -> None:
    with hub_in(tmp_path, OCC_HUB_WAIT_SECONDS="1") as hub:
        hub.start()
        hub.client.upload("work", make_zip({"a.txt": "a"}))
        final = run(hub.client, "hello")[-1]
        assert final.data["code"] == "NO_AGENT"
        assert f"an agent {sentences.TO_BE_ONLINE}" in final.data["message"]


def test_a_cancel_travels(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    stream, _ = begun(hub.client, steps(*WAITING), "e1")
    waiting = hub.client.execute("work", "hello", executionId="e2")
    assert next(waiting).name == "queued"
    hub.client.cancel("e2")
    assert list(waiting)[-1].data["code"] == "EXECUTION_CANCELLED"
    hub.client.cancel("e1")
    assert list(stream)[-1].data["code"] == "EXECUTION_CANCELLED"
    assert hub.client.execution("e1")["state"] == box.client.execution("e1")["state"] == "cancelled"
    assert [x["executionId"] for x in box.client.executions()["executions"]] == ["e1"]


def test_what_other_keys_made_is_not_there(hub_with_box: Hub) -> None:
    hub = hub_with_box
    hub.agent("box")
    mine, other = (hub.client_with(hub.key(name, "client")) for name in ("mine", "other"))
    mine.upload("work", make_zip({"a.txt": "a"}))
    run(mine, "hello", executionId="e1")
    for call in (
        lambda: other.execution("e1"),
        lambda: other.cancel("e1"),
        lambda: list(other.events("e1")),
        lambda: other.workspace("work"),
        lambda: other.delete_workspace("work"),
        lambda: other.archive("work", io.BytesIO()),
        lambda: run(other, "hello"),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.status == 404
    with pytest.raises(Refused) as refused:
        other.upload("work", make_zip({"b.txt": "b"}))
    assert refused.value.code == "WORKSPACE_CONFLICT"
    assert other.executions()["executions"] == other.workspaces() == []
    assert [x["executionId"] for x in mine.executions()["executions"]] == ["e1"]
    assert [x["executionId"] for x in hub.client.executions()["executions"]] == ["e1"]  # an admin's key
    for call in (("GET", "/keys"), ("POST", "/agents/box/drain"), ("DELETE", "/agents/box")):
        with pytest.raises(Refused) as refused:
            mine.call(*call)
        assert (refused.value.status, refused.value.code) == (403, "FORBIDDEN")


def test_keys_are_limited_and_a_revoked_one_is_refused_at_once(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    limited = hub.client_with(hub.key("limited", "client", "--most", "1"))
    limited.upload("work", make_zip({"a.txt": "a"}))
    stream, _ = begun(limited, steps(*WAITING), "e1")
    with pytest.raises(Refused) as refused:
        run(limited, "hello")
    assert (refused.value.status, refused.value.code) == (429, "QUEUE_FULL")
    hub.command("keys", "revoke", "limited")
    with pytest.raises(Refused) as refused:
        limited.executions()
    assert refused.value.status == 401
    let_go(box.home)
    del stream
    hub.command("keys", "revoke", "machines")
    wait_until(lambda: hub.seen("box")["state"] == "offline", "its key is refused")
    wait_until(lambda: hub.seen("box")["via"] != "link", "its link is cut")
    assert hub.request("POST", "/api/agents/register", json_body={}, token=hub.agent_key).status == 401
    hub.key("brief", "client", "--days", "0.000001")
    wait_until(lambda: "expired" in hub.command("keys", "list").stdout, "its day is over")
    listed = hub.command("keys", "list").stdout
    assert listed.count("revoked") == 2
    assert "occ_" not in listed


def test_a_version_the_hub_cannot_speak_to_is_refused_with_a_sentence(hub: Hub) -> None:
    body = {"protocol": 2, "name": "box", "version": "9", "port": 1, "workers": 1}
    reply = hub.request("POST", "/api/agents/register", json_body=body, token=hub.agent_key)
    assert reply.status == 426
    assert reply.json()["code"] == "PROTOCOL_UNSUPPORTED"
    assert sentences.INSTALL_VERSIONS_OF_OCC_THAT_MATCH in reply.json()["message"]


def test_a_draining_machine_finishes_and_takes_nothing_more(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    for workspace in ("work", "other"):
        hub.client.upload(workspace, make_zip({"a.txt": "a"}))
    stream, _ = begun(hub.client, steps(*WAITING), "e1")
    hub.command("agents", "drain", "box")
    assert "draining" in hub.command("agents").stdout
    waiting = hub.client.execute("other", "hello", executionId="e2")
    assert next(waiting).name == "queued"
    wait_until(lambda: "draining" in (hub.client.execution("e2")["waitsFor"] or ""), "the reason")
    let_go(box.home)
    assert list(stream)[-1].name == "complete"
    assert hub.client.execution("e2")["state"] == "queued"
    hub.command("agents", "resume", "box")
    assert list(waiting)[-1].name == "complete"


def test_a_removed_machine_ends_what_it_ran_and_its_workspaces_are_placed_anew(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    stream, _ = begun(hub.client, steps({"say": "on and on ", "times": 10_000, "every": 0.05}), "e1")
    assert sentences.REGISTERS_AGAIN in hub.command("agents", "remove", "box").stdout
    assert list(stream)[-1].data["code"] == "AGENT_LOST"
    wait_until(lambda: box.client.execution("e1")["state"] == "cancelled", "it is ended there")
    box.stop()
    hub.agent("other")
    run(hub.client, "hello", executionId="e2", agent="other")
    assert hub.client.workspace("work")["agentId"] == hub.seen("other")["agentId"]


def test_what_an_agent_has_of_its_own_is_neither_taken_for_the_hub_s_nor_overwritten(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    box.workspace("work", {"local.txt": "local"})
    box.workspace("mine", {"local.txt": "local"})
    box.run("hello", "mine", executionId="e1")
    hub.client.upload("work", make_zip({"hub.txt": "hub"}))
    final = run(hub.client, "hello")[-1]
    assert final.data["code"] == "AGENT_REFUSED"
    assert sentences.IS_NOT_THIS_HUB_S in final.data["message"]
    assert [path.name for path in (box.home / "workspaces" / "work").iterdir()] == ["local.txt"]
    hub.client.upload("theirs", make_zip({"hub.txt": "hub"}))
    assert output(run(hub.client, "hello", "theirs", executionId="e2"))
    box.run("hello", "theirs", executionId="e3")
    for taken in ("e1", "e3"):
        final = run(hub.client, "hello", "theirs", executionId=taken)[-1]
        assert final.data["code"] == "AGENT_REFUSED"
        assert sentences.CHOOSE_A_NEW_EXECUTIONID in final.data["message"]


def test_names_are_unique_and_never_look_like_ids(hub: Hub) -> None:
    with beating(hub, "same") as first, beating(hub, "agent-0123456789ab") as third:
        box = hub.agent("two", OCC_NAME="same")
        second = hub.seen("same-2")["agentId"]
        listed = {agent["name"]: agent["agentId"] for agent in hub.client.call("GET", "/agents")["agents"]}
        assert listed == {"same": first, "same-2": second, "agent-0123456789ab-2": third}
    box.stop()
    assert "calls this one same-2" in box.command("start").stderr
    body = {"protocol": 1, "agentId": first, "name": "same", "version": "1", "port": 9, "workers": 1, "direct": False}
    again = hub.request("POST", "/api/agents/register", json_body=body, token=hub.agent_key).json()
    assert (again["agentId"], again["name"]) == (first, "same")  # neither takes the other's name
    assert json.loads(box.command("status", "--json").stdout)["agentId"] == hub.seen("same-2")["agentId"] == second
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    run(hub.client, "hello", executionId="e1", agent="same-2")
    assert hub.client.execution("e1")["agentId"] == hub.seen("same-2")["agentId"]
    row = executions.get(hub.database, "e1")
    assert row.wanted_agent == hub.seen("same-2")["agentId"]  # kept as an id: a later name changes nothing


def test_the_commands_say_what_a_hub_s_execution_waits_for(hub_with_box: Hub, tmp_path: Path) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    project = tmp_path / "project"
    project.mkdir()
    (project / "a.txt").write_text("a")
    where = ("--url", hub.url, "--token", hub.client_key)
    run_it = subprocess.Popen(
        [sys.executable, "-m", "occ_app.cli", "run", *where, "--dir", str(project), "--label", "gpu", "hello"],
        env=box.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert run_it.stderr is not None
    said, gpu = "", f"{sentences.AN_AGENT_WITH_THE_LABELS} gpu {sentences.TO_BE_ONLINE}"
    while f"waiting for {gpu}" not in said:
        line = run_it.stderr.readline()
        assert line, said
        said += line
    listed = box.command("jobs", "--hub", OCC_HUB_HOME=str(hub.home)).stdout
    assert f"queued (waits for {gpu})" in listed
    execution_id = hub.client.executions()["executions"][0]["executionId"]
    assert f"{execution_id} is cancelled." in box.command("jobs", "cancel", execution_id, *where).stdout
    rest = run_it.communicate(timeout=30)[1]
    assert run_it.returncode == 130, rest
    assert hub.client.execution(execution_id)["waitsFor"] is None
    done = box.command("run", *where, "--dir", str(project), "hello")
    assert f"occ run --url {hub.url} --dir {project} -c" in done.stderr
    last = hub.client.executions()["executions"][0]["executionId"]
    assert box.command("jobs", "tail", last, *where).stdout == done.stdout


def test_a_workspace_uploaded_anew_replaces_the_files_where_it_lives(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "old"}))
    run(hub.client, "hello")
    place = box.home / "workspaces" / "work" / "a.txt"
    assert place.read_text() == "old"
    assert hub.client.upload("work", make_zip({"a.txt": "new"}), policy="reuse")["reused"]
    run(hub.client, "hello")
    assert place.read_text() == "old"
    anew = make_zip({"a.txt": "new"})
    hub.client.upload("work", anew)
    run(hub.client, "hello")
    assert place.read_text() == "new"
    stored = list((hub.home / "zips").glob("*.zip"))
    anew.seek(0)
    hub.client.upload("same", anew)
    assert set((hub.home / "zips").glob("*.zip")) <= set(stored)  # the same content is kept once
    hub.client.delete_workspace("work")
    wait_until(lambda: not place.exists(), "the agent deleted it, too")


def test_a_workspace_without_its_single_top_folder_is_placed_without_it(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    zipped = make_zip({"repo-main/a.txt": "a"})
    assert hub.client.upload("work", zipped, strip_root=True)["stripped"] == "repo-main"
    run(hub.client, "hello")
    assert (box.home / "workspaces/work/a.txt").read_text() == "a"
    zipped.seek(0)
    assert hub.client.upload("whole", zipped)["stripped"] is None
    run(hub.client, "hello", "whole")
    assert (box.home / "workspaces/whole/repo-main/a.txt").read_text() == "a"


def test_a_machine_that_only_the_link_reaches_does_everything(hub: Hub) -> None:
    box = hub.agent("box", OCC_BIND_ADDRESS="127.0.0.2")
    assert hub.seen("box")["via"] == "link"
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    stream, seen = begun(hub.client, steps(*WAITING), "e1")
    let_go(box.home)
    assert output(seen + list(stream)) == "begun done"
    stream, _ = begun(hub.client, steps({"say": "x"}, {"wait": "never"}), "e2")
    hub.client.cancel("e2")
    assert list(stream)[-1].data["code"] == "EXECUTION_CANCELLED"
    packed = io.BytesIO()
    hub.client.archive("work", packed)
    assert "a.txt" in zipfile.ZipFile(packed).namelist()


def test_a_machine_on_the_hub_s_own_machine_is_called_over_its_link(hub: Hub) -> None:
    """Also when it listens beyond loopback: test_two_machines.py has one that is called at its address."""
    hub.agent("box", OCC_BIND_ADDRESS="0.0.0.0")
    assert hub.seen("box")["via"] == "link"
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    assert output(run(hub.client, steps({"say": "hello"}))) == "hello"


def test_a_hub_killed_in_the_middle_goes_on_where_its_rows_end(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    stream, seen = begun(hub.client, steps({"say": "w", "times": 50, "every": 0.02}, *WAITING), "e1")
    for victim in ("occ_worker.hub executions", "occ_app.hub_wsgi", "supervisor"):
        for pid in hub.part(victim):
            os.kill(pid, signal.SIGKILL)
        if victim == "supervisor":
            wait_until(lambda: not hub.part("occ_"), "everything of it ended")
            hub.start()
        wait_until(lambda: hub.request("GET", "/health").status == 200, "it serves again")
    let_go(box.home)
    events = seen + list(stream)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert output(events) == "w" * 50 + "begun done"
    assert events[1:] == list(box.client.events("e1"))[1:]


def test_a_machine_that_was_away_goes_on_where_it_was(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    stream, seen = begun(hub.client, steps(*WAITING), "e1")
    box.kill()
    box.start()
    final = list(stream)[-1]
    assert final.data["code"] == "WORKER_LOST"  # the agent's own word: it is not run again
    assert hub.client.execution("e1")["lastSeq"] == len(seen) + 1


def test_a_machine_that_stays_away_loses_its_execution_and_is_told_so_when_it_returns(tmp_path: Path) -> None:
    with hub_in(tmp_path, OCC_HUB_RECONNECT_SECONDS="1") as hub:
        hub.start()
        box = hub.agent("box")
        hub.client.upload("work", make_zip({"a.txt": "a"}))
        stream, _ = begun(hub.client, steps(*WAITING), "e1")
        processes = box.commands().items()
        supervisor = next(pid for pid, line in processes if "supervisor" in line)
        os.kill(supervisor, signal.SIGSTOP)  # so that nothing takes their place
        try:
            for pid in [pid for pid, line in processes if "wsgi" in line or "control" in line]:
                os.kill(pid, signal.SIGKILL)
            assert list(stream)[-1].data["code"] == "AGENT_LOST"
            assert executions.get(box.database, "e1").state == "running"
        finally:
            os.kill(supervisor, signal.SIGCONT)
        wait_until(lambda: _state(box, "e1") == "cancelled", "it is cancelled there")


def _state(box: Occ, execution_id: str) -> str | None:
    """The state of an execution on a machine, None while the machine does not answer."""
    with contextlib.suppress(Unreachable):
        return str(box.client.execution(execution_id)["state"])
    return None


def test_another_machine_at_the_address_of_one_is_not_taken_for_it(tmp_path: Path, free_port: int) -> None:
    with hub_in(tmp_path, OCC_HUB_RECONNECT_SECONDS="2") as hub:
        hub.start()
        box = hub.agent("box", OCC_HTTP_PORT=str(free_port))
        hub.client.upload("work", make_zip({"a.txt": "a"}))
        begun(hub.client, steps(*WAITING), "e1")
        hub.stop()  # so that it does not see the old one go
        box.kill()
        for name in ("state.json", "machine.json"):
            (box.home / name).unlink()
        hub.start()
        box.start()  # registers as a new one, and refuses the token of the old
        final = list(hub.client.events("e1"))[-1]
        assert (final.data["code"], "was away" in final.data["message"]) == ("AGENT_LOST", True)


def test_what_an_agent_forgot_before_the_hub_had_it_is_told_as_a_gap(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    prompt = steps(*WAITING[:2], {"say": "more ", "times": 50})
    _, seen = begun(hub.client, prompt, "e1")
    hub.stop()
    let_go(box.home)
    wait_until(lambda: box.client.execution("e1")["state"] == "succeeded", "it to end")
    wait_until(lambda: box.client.execution("e1")["changesReason"] != "pending", "its changes to be recorded")
    last = box.client.execution("e1")["lastSeq"]
    with box.database.write() as connection:
        connection.execute("UPDATE executions SET finished_at = '2001-01-01T00:00:00.000Z'")
    box.command("jobs", "prune", "--older-than", "1d")
    hub.start()
    events = list(hub.client.events("e1", after=seen[-1].seq))
    assert [(event.seq, event.name) for event in events] == [(last - 1, "gap"), (last, "complete")]


def test_a_machine_removed_while_work_is_placed_on_it_gets_none(hub: Hub) -> None:
    class Meanwhile(db.Database):
        """Something happens after each look at the rows."""

        happens = ""

        @contextlib.contextmanager
        def read(self) -> Iterator[sqlite3.Connection]:
            with super().read() as connection:
                yield connection
            with self.write() as connection:
                connection.execute(self.happens)

    hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    hub.command("agents", "drain", "box")
    waiting = hub.client.execute("work", "hello", executionId="e1")
    next(waiting)
    hub.stop()
    database = Meanwhile(hub.home / "occ.db")
    agents = Agents(database, 60)
    with database.write() as connection:
        connection.execute("UPDATE agents SET draining = 0")
    for happens in ("UPDATE agents SET draining = 1", "DELETE FROM agents"):
        Meanwhile.happens = happens
        assert placement.claim(database, agents, own_identity()) is None
        Meanwhile.happens = "UPDATE agents SET draining = 0"
        assert executions.get(database, "e1").state == "queued"
        assert workspaces.get(database, "work").agent_id is None
    database.close()


@contextlib.contextmanager
def beating(hub: Hub, name: str, **said: object) -> Iterator[str]:
    """A machine that registers and sends heartbeats, but that the hub cannot call; yields its id."""
    machine = {"protocol": 1, "name": name, "version": "1", "port": 9, "workers": 50, "direct": False, **said}
    known = json.loads(hub.request("POST", "/api/agents/register", json_body=machine, token=hub.agent_key).data)
    path = f"/api/agents/{known['agentId']}/heartbeat"
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.5):
            reply = hub.request("POST", path, json_body={"seqNum": 1, "status": "healthy"}, token=known["token"])
            assert (reply.status, json.loads(reply.data)) == (200, {"via": None})

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield known["agentId"]
    finally:
        over.set()
        thread.join()


def test_a_machine_the_hub_cannot_call_gets_no_work_and_is_named(hub: Hub) -> None:
    hub.agent("near", OCC_WORKERS="1")
    with beating(hub, "far", labels=["far"]):
        for number in range(2):
            hub.client.upload(f"w{number}", make_zip({"a.txt": "a"}))
            assert output(run(hub.client, steps({"say": "here"}), f"w{number}")) == "here"
        hub.client.upload("work", make_zip({"a.txt": "a"}))
        stream = hub.client.execute("work", "hello", executionId="e1", labels=["far"])
        next(stream)
        wait_until(
            lambda: sentences.TO_BE_REACHED in (hub.client.execution("e1")["waitsFor"] or ""), "it says why it waits"
        )
        hub.client.cancel("e1")
        assert list(stream)[-1].data["code"] == "EXECUTION_CANCELLED"
        wait_until(lambda: any("far" in problem for problem in hub.client.health()["problems"]), "the hub names it")


def test_what_was_placed_and_never_offered_goes_back_to_the_queue(hub: Hub) -> None:
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    with beating(hub, "far") as far:
        stream = hub.client.execute("work", steps({"say": "here"}), executionId="e1")
        next(stream)
        gone = ProcessIdentity(boot_id(), 2**22, 1)  # a relay whose process ended between the placement and the offer
        placed = placement.claim(hub.database, Agents(hub.database, 60), gone)
        assert placed is not None
        assert placed.agent_id == far
        wait_until(lambda: hub.client.execution("e1")["agentId"] is None, "it is back in the queue")
        assert hub.client.workspace("work")["agentId"] is None
        hub.agent("near")
        assert output(list(stream)) == "here"


def test_a_revoked_key_s_streams_end(hub_with_box: Hub) -> None:
    hub = hub_with_box
    hub.agent("box")
    client = hub.client_with(hub.key("brief", "client"))
    client.upload("work", make_zip({"a.txt": "a"}))
    stream, _ = begun(client, steps(*WAITING), "e1")
    hub.command("keys", "revoke", "brief")
    with pytest.raises(Refused) as refused:
        list(stream)  # the connection is ended, and taking it up again is refused
    assert refused.value.status == 401
    hub.client.cancel("e1")


def test_the_hub_measures_its_machines_and_relays(hub_with_box: Hub) -> None:
    hub = hub_with_box
    hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    run(hub.client, "hello")

    def metrics() -> str:
        return hub.request("GET", "/metrics").data.decode()

    wait_until(lambda: "occ_relays 0.0" in metrics(), "the relay to have left")
    told = metrics()
    for line in ('occ_agent_online{agent="agent-', 'occ_agents_reached{via="link"} 1.0', "occ_relays 0.0"):
        assert line in told
    assert hub.request("GET", "/metrics", token=hub.key("other", "client")).status == 403


def test_the_commands_of_an_agent_look_at_the_hub_too(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    run(hub.client, steps({"say": "needle"}), executionId="e1")
    environment = {"OCC_HUB_HOME": str(hub.home), "OCC_HOME": str(hub.place / "none")}
    assert "e1" in box.command("jobs", "--hub", **environment).stdout
    assert box.command("jobs", "--hub", "tail", "e1", **environment).stdout == "needle\n"
    wait_until(lambda: "e1" in box.command("jobs", "--hub", "search", "needle", **environment).stdout, "it is indexed")
    assert (
        f"e1 {sentences.WAS_OVER_ALREADY} succeeded"
        in box.command("jobs", "--hub", "cancel", "e1", **environment).stdout
    )
    assert box.command("jobs", "tail", "e1", "--hub", **environment).stdout == "needle\n"
    assert "succeeded" in box.command("jobs", "show", "e1", "--hub", **environment).stdout
    listed = box.command("workspaces", "list", "--hub", **environment).stdout
    assert "work" in listed


def test_each_kind_of_key_opens_its_own_addresses(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    body = {"protocol": 1, "name": "box", "version": "9", "port": 1, "workers": 1}
    assert hub.request("POST", "/api/agents/register", json_body=body, token=hub.client_key).status == 401
    beat = {"seqNum": 1, "status": "healthy"}
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade |= {"Sec-WebSocket-Key": "bWFkZS11cC1ieXRlcy4uLg==", "Sec-WebSocket-Protocol": "occ-link.1"}
    agent_id = hub.seen("box")["agentId"]
    for token in (hub.client_key, hub.agent_key, "", "wrong"):
        path = f"/api/agents/{agent_id}/heartbeat"
        assert hub.request("POST", path, json_body=beat, token=token).status == 401
        assert hub.request("GET", f"/api/agents/{agent_id}/link", token=token, **upgrade).status == 401
    assert hub.request("POST", f"/api/agents/{agent_id}/heartbeat", json_body=beat, token=box.token).status == 200
    for token in (hub.agent_key, box.token, "", "wrong"):
        for path in ("/health", "/executions", "/agents", "/keys", "/metrics", "/openapi.json"):
            assert hub.request("GET", path, token=token).status == 401


def test_a_hub_with_a_certificate_of_its_own_is_pinned(hub: Hub, tmp_path: Path) -> None:
    hub.stop()
    hub.start("--tls", "self-signed")
    status = json.loads(hub.command("status", "--json").stdout)
    pin = status["tlsFingerprint"]
    assert status["url"] == hub.url
    told = hub.command("keys", "create", "more", "--for", "agent").stderr
    assert f"OCC_API_KEY=KEY occ start --remote-url {hub.url} --remote-pin {pin}" in told
    assert "OCC_PERMISSIONS=ask" in told
    with urllib3.PoolManager(retries=False, cert_reqs="CERT_NONE", assert_fingerprint=pin) as pool:
        entered = pool.request("POST", f"{hub.url}/login", fields={"key": hub.client_key}, redirect=False)
        cookie = entered.headers["Set-Cookie"].partition(";")[0]
        page = unescape(pool.request("GET", f"{hub.url}/lists", headers={"Cookie": cookie}).data.decode())
    line = page.partition("OCC_API_KEY=KEY ")[2].partition("</code>")[0].replace("\\\n", " ").split()
    assert line == ["occ", "start", "--remote-url", hub.url, "--remote-pin", pin]
    client = AgentClient(hub.url, hub.client_key, pin)
    hub.clients.append(client)
    settings = {"OCC_API_KEY": hub.agent_key, "OCC_REMOTE_URL": hub.url, "OCC_NAME": "box"}
    with occ_in(tmp_path, home=tmp_path / "box", OCC_BIND_ADDRESS="127.0.0.2", **settings) as box:
        unpinned = box.command("start")
        assert "--remote-pin" in unpinned.stderr
        box.stop()
        wrong = box.command("start", OCC_REMOTE_PIN="AA:" * 31 + "AA")
        assert sentences.REGISTERING_IN_THE_BACKGROUND in wrong.stderr
        assert client.call("GET", "/agents")["agents"] == []
        box.stop()
        box.start(OCC_REMOTE_PIN=pin)
        wait_until(lambda: [a["via"] for a in client.call("GET", "/agents")["agents"]] == ["link"], "it is linked")
        client.upload("work", make_zip({"a.txt": "a"}))
        assert output(run(client, steps({"say": "secret"}))) == "secret"


def test_output_beyond_the_hub_s_limit_ends_the_execution_on_the_agent_too(tmp_path: Path) -> None:
    with hub_in(tmp_path, OCC_HUB_MAX_OUTPUT_BYTES="2000") as hub:
        hub.start()
        box = hub.agent("box")
        hub.client.upload("work", make_zip({"a.txt": "a"}))
        said = {"say": "x" * 100, "times": 1000, "every": 0.01}
        assert run(hub.client, steps(said), executionId="e1")[-1].data["code"] == "OUTPUT_LIMIT"
        wait_until(lambda: box.client.execution("e1")["state"] == "cancelled", "it is ended there")


def test_what_agents_send_is_small_and_read_only_from_those_that_are_known(hub_with_box: Hub) -> None:
    hub = hub_with_box
    box = hub.agent("box")
    path = f"/api/agents/{hub.seen('box')['agentId']}/heartbeat"
    large = {"seqNum": 1, "status": "healthy", "more": "x" * 2_000_000}
    assert hub.request("POST", path, json_body=large, token=box.token).status == 413
    assert hub.request("POST", path, json_body=large, token="wrong").status == 401
    assert hub.request("POST", "/api/agents/register", json_body=large, token=hub.agent_key).status == 413
