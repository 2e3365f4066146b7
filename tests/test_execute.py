"""A prompt in, a stream out: what /execute and its events promise."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from occ_app.api import executions as api_executions
from occ_app.errors import Refused
from tests import sentences, websockets
from tests.conftest import Occ, make_zip, names, output, steps, wait_until


def test_the_text_streams_as_output_and_ends_with_complete(agent: Occ) -> None:
    events = agent.run(steps({"say": "Hel"}, {"say": "lo"}))
    assert names(events) == ["queued", "started", "output", "output", "complete"]
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert output(events) == "Hello"
    assert events[0].data["position"] == 0
    assert events[1].data["claudeVersion"] == "9.9.9"
    final = events[-1].data
    assert final["exitCode"] == 0
    assert final["costUsd"] == 0.25
    assert final["usage"] == {"input_tokens": 3, "output_tokens": 5}
    assert all(isinstance(event.data["timestamp"], int) for event in events)


def test_output_arrives_while_the_cli_still_works(agent: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    events = agent.client.execute("work", steps({"say": "first"}, {"wait": str(gate)}, {"say": "second"}))
    seen = []
    for event in events:
        seen.append(event)
        if event.name == "output" and not gate.exists():
            gate.touch()
    assert output(seen) == "firstsecond"


def test_every_delta_is_one_event(agent: Occ) -> None:
    events = agent.run(steps({"say": "x", "times": 3000}))
    assert names(events).count("output") == 3000
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def test_a_tool_call_is_told_twice_with_one_id(agent: Occ) -> None:
    events = agent.run(steps({"tool": "Write", "input": {"file_path": "a"}, "result": "done"}))
    call, result = (event.data for event in events if event.name == "tool")
    assert (call["name"], call["input"]) == ("Write", {"file_path": "a"})
    assert (result["result"], result["isError"]) == ("done", False)
    assert call["toolUseId"] == result["toolUseId"]


def test_a_long_tool_value_is_cut_at_64_kib(agent: Occ) -> None:
    long = "é" * 100_000
    events = agent.run(steps({"tool": "Write", "input": {"content": long, "file_path": "a"}, "result": long}))
    call, result = (event.data for event in events if event.name == "tool")
    assert call["truncated"] is True
    assert call["input"]["file_path"] == "a"
    assert result["truncated"] is True
    assert len(result["result"].encode()) <= 65536
    assert long.startswith(result["result"])


def test_a_delta_over_64_kib_is_split_between_characters(agent: Occ) -> None:
    long = "a" + "日本語" * 60_000
    events = agent.run(steps({"say": long}))
    chunks = [event.data["chunk"] for event in events if event.name == "output"]
    assert "".join(chunks) == long
    assert max(len(chunk.encode()) for chunk in chunks) <= 65536


def test_the_same_id_and_body_attach_to_the_same_execution(agent: Occ) -> None:
    prompt = steps({"write": "runs", "text": "once"}, {"tool": "Read", "input": {}, "result": "x"})
    first = agent.run(prompt, executionId="twice")
    (agent.home / "workspaces/work/runs").unlink()
    assert agent.run(prompt, executionId="twice") == first
    assert not (agent.home / "workspaces/work/runs").exists(), "the CLI was started again"
    assert len(agent.client.executions()["executions"]) == 1


def test_the_same_id_with_another_body_is_a_conflict(agent: Occ) -> None:
    agent.run("hello", executionId="once")
    with pytest.raises(Refused) as refusal:
        agent.run("something else", executionId="once")
    assert (refusal.value.status, refusal.value.code) == (409, "EXECUTION_CONFLICT")


def test_a_client_that_went_away_comes_back_and_misses_nothing(agent: Occ) -> None:
    prompt = steps({"say": "0123456789", "times": 200, "every": 0.005})
    stream = agent.client.execute("work", prompt, executionId="returning")
    seen = [next(stream) for _ in range(20)]
    stream.close()
    seen += list(agent.client.events("returning", after=seen[-1].seq))
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert output(seen) == "0123456789" * 200


def test_events_can_be_read_from_any_point_while_it_runs_and_after(agent: Occ) -> None:
    agent.run(steps({"say": "x", "times": 50}), executionId="replayed")
    everything = list(agent.client.events("replayed"))
    for after in (0, 1, 7, len(everything) - 1):
        assert list(agent.client.events("replayed", after=after)) == everything[after:]


@pytest.mark.parametrize("after", [0, 1000])
def test_the_final_event_is_sent_even_to_a_reader_beyond_it(agent: Occ, after: int) -> None:
    events = agent.run("hello", executionId="over")
    assert list(agent.client.events("over", after=len(events) + after)) == [events[-1]]


def test_a_reader_that_is_ahead_is_told_the_end_when_it_comes(agent: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    stream, _ = agent.under_way(steps({"say": "now"}, {"wait": str(gate)}), "behind")
    ahead, sent = agent.client.batches("behind", 1000), []
    assert next(ahead) == []  # it follows
    url = agent.url.replace("http", "ws") + "/executions/behind/ws?after=1000"
    reader = threading.Thread(target=lambda: sent.extend(websockets.messages(url, agent.token)), daemon=True)
    reader.start()
    wait_until(lambda: b"\nocc_streams_open 3" in agent.request("GET", "/metrics").data, "all three to read")
    gate.touch()
    final = list(stream)[-1]
    assert [(event.seq, event.name) for event in next(ahead)] == [(final.seq, "complete")]
    reader.join(60)
    assert [json.loads(message)["data"] for message in sent] == [final.data]


def test_without_follow_the_stream_ends_at_what_is_there(agent: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    stream = agent.client.execute("work", steps({"say": "now"}, {"wait": str(gate)}), executionId="paused")
    wait_until(lambda: next(stream).name == "output", "the first output")
    assert names(list(agent.client.events("paused", follow=False))) == ["queued", "started", "output"]
    gate.touch()


def test_executions_of_one_workspace_run_one_at_a_time_in_order(agent: Occ) -> None:
    prompt = steps({"write": "running", "text": ""}, {"sleep": 0.2})
    with ThreadPoolExecutor(3) as pool:
        runs = []
        for number in range(3):
            runs.append(pool.submit(agent.run, prompt, executionId=f"in-order-{number}"))
            wait_until(lambda n=number: exists(agent, f"in-order-{n}"), "it to be accepted")
        for done in runs:
            done.result()
    records = [agent.client.execution(f"in-order-{number}") for number in range(3)]
    for earlier, later in pairwise(records):
        assert earlier["finishedAt"] <= later["startedAt"]


def exists(agent: Occ, execution_id: str) -> bool:
    return agent.request("GET", f"/executions/{execution_id}").status == 200


def test_different_workspaces_run_side_by_side_up_to_the_number_of_workers(agent: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    for number in range(3):
        agent.workspace(f"side-{number}")
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(agent.run, steps({"wait": str(gate)}), f"side-{number}", executionId=f"side-{number}")
            for number in range(3)
        ]
        wait_until(lambda: agent.client.health()["workers"]["busy"] == 2, "two to run")
        wait_until(lambda: agent.client.health()["queue"]["depth"] == 1, "one to wait")
        gate.touch()
        assert [done.result()[-1].name for done in runs] == ["complete"] * 3


def test_a_waiting_execution_occupies_no_worker(agent: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    agent.workspace("other")
    with ThreadPoolExecutor(4) as pool:
        blocked = [pool.submit(agent.run, steps({"wait": str(gate)})) for _ in range(3)]
        wait_until(lambda: agent.client.health()["queue"]["depth"] == 2, "two to wait")
        assert agent.run("quick", "other")[-1].name == "complete"
        gate.touch()
        for done in blocked:
            done.result()


def test_a_waiting_execution_tells_its_position(agent: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    with ThreadPoolExecutor(3) as pool:
        runs = []
        for number in range(3):
            runs.append(pool.submit(agent.run, steps({"wait": str(gate)}), executionId=f"queued-{number}"))
            wait_until(lambda n=number: exists(agent, f"queued-{n}"), "it to be accepted")
            if number == 0:
                wait_until(lambda: agent.client.execution("queued-0")["state"] == "running", "the first to run")
        assert [agent.client.execution(f"queued-{number}")["position"] for number in range(3)] == [None, 0, 1]
        gate.touch()
        events = [done.result() for done in runs]
    assert [run[0].data["position"] for run in events] == [0, 0, 1]


def test_cancel_ends_a_running_execution_and_everything_it_started(agent: Occ) -> None:
    stream = agent.client.execute("work", steps({"spawn": "session"}, {"say": "on"}, {"sleep": 60}), executionId="c")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    child = int((agent.home / "workspaces/work/spawned.pid").read_text())
    begun = time.monotonic()
    agent.client.cancel("c")
    final = list(stream)[-1]
    assert final.data["code"] == "EXECUTION_CANCELLED"
    assert time.monotonic() - begun < 30  # it would go on for 60
    assert agent.client.execution("c")["state"] == "cancelled"
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_cancel_ends_a_cli_that_ignores_every_polite_request(agent: Occ) -> None:
    stream = agent.client.execute("work", steps({"stubborn": True}, {"say": "no"}, {"sleep": 60}), executionId="s")
    wait_until(lambda: next(stream).name == "output", "it to be under way")
    begun = time.monotonic()
    agent.client.cancel("s")
    final = list(stream)[-1]
    assert (final.data["code"], final.data["signal"]) == ("EXECUTION_CANCELLED", 9)
    assert 3.5 < time.monotonic() - begun < 30  # it would go on for 60


def test_a_cancelled_waiting_execution_never_starts(agent: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(agent.run, steps({"wait": str(gate)}), executionId="first")
        wait_until(lambda: exists(agent, "first"), "the first to be accepted")
        waiting = pool.submit(agent.run, steps({"write": "started", "text": ""}), executionId="second")
        wait_until(lambda: exists(agent, "second"), "the second to be accepted")
        agent.client.cancel("second")
        assert names(waiting.result()) == ["queued", "error"]
        gate.touch()
        running.result()
    assert not (agent.home / "workspaces/work/started").exists()


def test_cancel_is_harmless_when_it_is_over(agent: Occ) -> None:
    agent.run("hello", executionId="done")
    assert agent.client.cancel("done")["state"] == "succeeded"
    assert agent.client.execution("done")["state"] == "succeeded"


def test_the_time_limit_ends_an_execution(agent: Occ) -> None:
    final = agent.run(steps({"say": "tick", "times": 1000, "every": 0.05}), timeoutSeconds=0.7)[-1]
    assert final.data["code"] == "EXECUTION_TIMEOUT"


def test_silence_ends_an_execution(agent: Occ) -> None:
    for limit in (0.8, 3.2, 12.8):  # on a busy machine a CLI may say nothing for longer than the first of them
        said = {"say": "a", "times": 5, "every": limit * 0.375}
        events = agent.run(steps(said, {"sleep": 60}), idleTimeoutSeconds=limit)
        assert events[-1].data["code"] == "EXECUTION_IDLE"
        if output(events) == "aaaaa":
            return
    pytest.fail("output did not restart the time of silence")


@pytest.mark.parametrize(
    ("script", "code", "extra"),
    [
        ([{"exit": 0}], "OUTPUT_TRUNCATED", {"exitCode": 0}),
        ([{"stderr": "it broke\n"}, {"exit": 3}], "CLAUDE_EXIT", {"exitCode": 3}),
        ([{"kill": 9}], "CLAUDE_EXIT", {"signal": 9}),
        ([{"kill": 15}], "CLAUDE_EXIT", {"signal": 15}),
        ([{"result": {"is_error": True, "subtype": "error_max_turns"}}], "MAX_TURNS", {}),
        ([{"result": {"is_error": True, "subtype": "error_max_budget_usd"}}], "MAX_BUDGET", {}),
        ([{"result": {"is_error": True, "api_error_status": 401, "result": "bad key"}}], "CLAUDE_AUTH", {}),
        ([{"result": {"is_error": True, "api_error_status": 403, "result": "no"}}], "CLAUDE_AUTH", {}),
        ([{"result": {"is_error": True, "api_error_status": 400, "result": "no"}}], "CLAUDE_ERROR", {}),
        ([{"result": {"is_error": True, "api_error_status": 429, "result": "slow down"}}], "RATE_LIMITED", {}),
        ([{"result": {"is_error": True, "api_error_status": 529, "result": "Overloaded"}}], "API_UNAVAILABLE", {}),
        ([{"result": {"is_error": True, "result": "who knows"}}], "CLAUDE_ERROR", {}),
    ],
)
def test_each_way_to_fail_has_its_code(agent: Occ, script: list, code: str, extra: dict) -> None:
    events = agent.run(json.dumps(script))
    assert events[-1].name == "error"
    assert events[-1].data["code"] == code
    assert events[-1].data.items() >= extra.items()
    assert agent.client.executions()["executions"][0]["errorCode"] == code


def test_what_the_cli_said_last_on_standard_error_is_in_the_message(agent: Occ) -> None:
    assert "it broke" in agent.run(steps({"stderr": "it broke\n"}, {"exit": 3}))[-1].data["message"]


def test_a_cli_that_stays_after_its_result_still_succeeds(agent: Occ) -> None:
    line = json.dumps({"type": "result", "subtype": "success", "is_error": False, "session_id": "s", "num_turns": 1})
    events = agent.run(steps({"stubborn": True}, {"say": "hi"}, {"line": line}, {"sleep": 60}))
    assert events[-1].name == "complete"


def test_lines_that_are_no_json_are_passed_over(agent: Occ) -> None:
    events = agent.run(steps({"line": "warning: no json"}, {"line": "[1]"}, {"line": '{"type":"new"}'}, {"say": "ok"}))
    assert names(events) == ["queued", "started", "output", "complete"]


def test_text_that_looks_like_an_event_stream_stays_text(agent: Occ) -> None:
    text = 'a\n\nid: 99\nevent: complete\ndata: {"exitCode":0}\n\n\r\u2028\u0000\x1b'
    assert output(agent.run(steps({"say": text}))) == text


def test_a_surrogate_pair_split_over_two_deltas_is_one_character(agent: Occ) -> None:
    events = agent.run(steps({"say": "a\ud83d"}, {"say": "z"}))
    assert output(events) == "a\ufffdz"
    delta = '{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"%s"}}}'
    events = agent.run(steps({"line": delta % r"a\ud83d"}, {"line": delta % r"\ude00b"}, {"line": delta % r"\ude00c"}))
    assert [event.data["chunk"] for event in events if event.name == "output"] == ["a", "😀b", "\ufffdc"]


def test_a_removed_workspace_fails_what_waits_for_it(agent: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    agent.workspace("blocker")
    agent.workspace("blocker2")
    agent.workspace("gone")
    with ThreadPoolExecutor(3) as pool:
        blockers = [pool.submit(agent.run, steps({"wait": str(gate)}), name) for name in ("blocker", "blocker2")]
        wait_until(lambda: agent.client.health()["workers"]["busy"] == 2, "all workers to be busy")
        waiting = pool.submit(agent.run, "hello", "gone", executionId="too-late")
        wait_until(lambda: exists(agent, "too-late"), "it to be accepted")
        agent.client.delete_workspace("gone")
        gate.touch()
        assert waiting.result()[-1].data["code"] == "WORKSPACE_MISSING"
        for done in blockers:
            done.result()


def test_a_missing_cli_fails_the_execution_and_degrades_health(occ: Occ) -> None:
    occ.environment["OCC_CLAUDE_BIN"] = "/nonexistent/claude"
    started = occ.command("start")
    assert sentences.CLAUDE_CODE_WAS_NOT_FOUND in started.stderr
    occ.attach()
    occ.workspace()
    assert occ.run("hello")[-1].data["code"] == "CLAUDE_NOT_FOUND"
    health = wait_until(lambda: (h := occ.client.health())["status"] == "degraded" and h, "health to be degraded")
    assert "OCC_CLAUDE_BIN" in health["problems"][0]


def test_fifty_readers_see_the_same_events(agent: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    prompt = steps({"say": "x", "times": 100, "every": 0.002}, {"wait": str(gate)}, {"say": "y", "times": 100})
    first = agent.client.execute("work", prompt, executionId="popular")
    next(first)
    with ThreadPoolExecutor(50) as pool:
        readers = [pool.submit(lambda: list(agent.client.events("popular"))) for _ in range(50)]
        wait_until(lambda: agent.client.execution("popular")["lastSeq"] > 50, "some output")
        gate.touch()
        seen = [reader.result() for reader in readers]
    assert all(events == seen[0] for events in seen)
    assert [event.seq for event in seen[0]] == list(range(1, len(seen[0]) + 1))


def test_the_websocket_carries_the_same_events(agent: Occ) -> None:
    events = agent.run(steps({"say": "x", "times": 20}), executionId="over-ws")
    url = agent.url.replace("http", "ws") + "/executions/over-ws/ws"
    received = [json.loads(message) for message in websockets.messages(url, agent.token)]
    assert [(m["id"], m["event"], m["data"]) for m in received] == [(e.seq, e.name, e.data) for e in events]


@pytest.mark.parametrize("fault", [BrokenPipeError(), ConnectionResetError(), OSError("closed"), TimeoutError()])
def test_a_websocket_that_drops_in_the_middle_of_a_message_ends_quietly(fault: OSError) -> None:
    class Dropped:
        def send(self, _: str) -> None:
            raise fault

    assert not api_executions._sent(Dropped(), "{}")


def test_a_websocket_that_is_dropped_costs_other_readers_nothing(agent: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    stream, _ = agent.under_way(steps({"say": "before "}, {"wait": str(gate)}, {"say": "after"}), "followed")
    url = f"{agent.url}/executions/followed/ws"
    for _ in range(3):
        dropped = websockets.messages(url, agent.token)
        next(dropped)
        dropped.close()
        # Its descriptor is free again, and the next connection's.
        wait_until(lambda: b"occ_streams_open 1.0\n" in agent.request("GET", "/metrics").data, "it to be noticed")
        second = agent.client.events("followed")
        assert next(second).name == "queued"
        second.close()
    readers = [agent.client.events("followed") for _ in range(3)]
    assert all(next(reader).name == "queued" for reader in readers)
    gate.touch()
    assert output(list(stream)) == "after"
    assert [output(list(reader)) for reader in readers] == ["before after"] * 3
    assert "Traceback" not in agent.logs()


def test_a_websocket_follows_what_still_runs(agent: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    runner = threading.Thread(
        target=agent.run, args=(steps({"wait": str(gate)}, {"say": "late"}),), kwargs={"executionId": "live-ws"}
    )
    runner.start()
    wait_until(lambda: exists(agent, "live-ws"), "it to be accepted")
    url = agent.url.replace("http", "ws") + "/executions/live-ws/ws"
    messages = map(json.loads, websockets.messages(url, agent.token))
    assert next(messages)["event"] == "queued"
    gate.touch()
    received = list(messages)
    assert received[-1]["event"] == "complete"
    assert "late" in [message["data"].get("chunk") for message in received]
    runner.join()


def test_the_queue_has_a_limit(occ: Occ, tmp_path) -> None:
    gate = tmp_path / "gate"
    occ.start(OCC_MAX_QUEUE="1", OCC_WORKERS="1")
    occ.workspace()
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(occ.run, steps({"wait": str(gate)}), executionId="running")]
        wait_until(lambda: occ.client.health()["workers"]["busy"] == 1, "one to run")
        runs.append(pool.submit(occ.run, "hello", executionId="waiting"))
        wait_until(lambda: occ.client.health()["queue"]["depth"] == 1, "one to wait")
        refused = occ.request(
            "POST", "/execute", json_body={"executionId": "over", "workspaceId": "work", "prompt": "x"}
        )
        assert (refused.status, refused.json()["code"]) == (429, "QUEUE_FULL")
        assert refused.headers["Retry-After"]
        assert occ.request("GET", "/executions/over").status == 404
        gate.touch()
        for done in runs:
            done.result()


def test_a_zip_uploaded_anew_replaces_the_workspace_between_executions(agent: Occ) -> None:
    agent.run(steps({"write": "made.txt", "text": "by claude"}))
    assert (agent.home / "workspaces/work/made.txt").exists()
    agent.client.upload("work", make_zip({"new.txt": "new"}))
    assert sorted(path.name for path in (agent.home / "workspaces/work").iterdir()) == ["new.txt"]


def test_a_stream_announces_that_its_connection_ends_with_it(agent: Occ) -> None:
    body = {"executionId": "closing", "workspaceId": "work", "prompt": "hello"}
    live = agent.request("POST", "/execute", json_body=body)
    assert b"event: complete" in live.data
    stored = agent.request("GET", "/executions/closing/events?follow=0")
    assert [live.headers["Connection"], stored.headers["Connection"]] == ["close", "close"]
    assert agent.request("GET", "/executions").headers["Connection"] == "keep-alive"
