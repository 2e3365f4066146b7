"""CLIs that behave as badly as they can: each gives the right last event, in bounded memory, and leaves no process."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Occ, output, stand_in, steps, wait_until
from tests.kept_daemons import KeptAgent
from tests.promises import Promises, counting_cli

MEMORY_BYTES = 100_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the CLI and of its notes."""
    return tmp_path_factory.mktemp("stubborn")


@pytest.fixture(scope="module")
def kept(folder: Path) -> Iterator[KeptAgent]:
    """An agent that the tests use one after another."""
    stand_in(folder)
    program, _ = counting_cli(folder)
    kept = KeptAgent(folder / "agents", program, OCC_MAX_OUTPUT_BYTES="20000000")
    yield kept
    kept.end()


@pytest.fixture
def promises(kept: KeptAgent, folder: Path, tmp_path: Path) -> Iterator[Promises]:
    with kept.lent(tmp_path) as occ:
        occ.workspace()
        yield Promises(occ, folder / "starts")


_FIRST: dict[int, int] = {}  # the memory of each process when it was first seen: what a test leaves counts in the next


class Memory:
    """The most memory that any process of the daemon takes while the block runs, above its first size."""

    def __init__(self, occ: Occ) -> None:
        self._occ = occ
        self._done = threading.Event()
        self.growth = 0

    def __enter__(self) -> Memory:
        self._before = {process.pid: _FIRST.setdefault(process.pid, _own(process)) for process in self._occ.processes()}
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            for pid in self._before:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.growth = max(self.growth, _own(psutil.Process(pid)) - self._before[pid])


def _own(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def raw(data: bytes) -> dict:
    return {"raw": base64.b64encode(data).decode()}


def delta(text: str) -> bytes:
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return json.dumps({"type": "stream_event", "event": event, "session_id": "x"}).encode()


SUCCEEDED = "complete"


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ([{"sleep": 60}], "EXECUTION_IDLE"),
        ([{"say": "0 "}, {"sleep": 60}], "EXECUTION_IDLE"),
        ([{"stubborn": True}, {"say": "0 "}, {"sleep": 60}], "EXECUTION_IDLE"),
        ([{"say": "0 "}, {"close_stdout": True}, {"sleep": 60}], "EXECUTION_IDLE"),
        ([{"spawn": "child"}, {"say": "0 "}], SUCCEEDED),
        ([{"spawn": "session"}, {"say": "0 "}], SUCCEEDED),
        ([{"spawn": "daemon"}, {"say": "0 "}], SUCCEEDED),
        ([{"spawn": "daemon"}, {"say": "0 "}, {"kill": 9}], "CLAUDE_EXIT"),
        ([{"say": "0 "}, {"kill": 11}], "CLAUDE_EXIT"),
        ([{"say": "0 "}, {"exit": 0}], "OUTPUT_TRUNCATED"),
        ([{"say": "0 "}, raw(b'{"type":"stream_ev'), {"exit": 0}], "OUTPUT_TRUNCATED"),
        ([raw(b"\xff\xfe\x00\n\x00\n" + b"[" * 5000 + b"\n"), {"say": "0 "}], SUCCEEDED),
        ([raw(delta("0 ") + b"\n" + b'null\n5\n[]\n"x"\n{}\n')], SUCCEEDED),
        ([{"flood": 50_000_000, "of": "x"}], "OUTPUT_LIMIT"),
        ([{"flood": 300_000_000, "of": "no json " * 120 + "\n"}], SUCCEEDED),
        ([{"say": "y" * 50_000, "times": 1000}], "OUTPUT_LIMIT"),
        ([{"stderr": "e" * 5_000_000}, {"say": "0 "}], SUCCEEDED),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_worst_cli_gets_the_right_end_in_bounded_memory(promises: Promises, script: list[dict], end: str) -> None:
    occ = promises.occ
    with Memory(occ) as memory:
        # One that is to speak may be slow to begin on a busy machine.
        silence = 2 if end == "EXECUTION_IDLE" else 60
        events = occ.run(steps(*script), executionId="bad", idleTimeoutSeconds=silence, timeoutSeconds=300)
    assert events[-1].data.get("code", events[-1].name) == end, events[-1]
    assert memory.growth < MEMORY_BYTES, memory.growth
    wait_until(lambda: not promises.strays({"bad"}), "everything it started to be gone")
    assert occ.run(steps({"say": "0 "}))[-1].name == SUCCEEDED
    assert occ.client.health()["workers"]["busy"] == 0


def test_a_cli_that_closed_its_output_and_lives_on_is_ended_after_five_seconds(promises: Promises) -> None:
    events = promises.occ.run(steps({"say": "0 "}, {"close_stdout": True}, {"sleep": 60}))
    assert events[-1].data["code"] == "OUTPUT_TRUNCATED"


def test_text_of_every_kind_arrives_as_it_was(promises: Promises) -> None:
    texts = ["a\0b", "\u2028\u2029", "event: complete\ndata: {}\n\n", "\r\n\r\n", "é\U0001f600", "\x1b[31m", "id: 9\n"]
    lines = b"".join(delta(text) + b"\n" for text in texts)
    events = promises.occ.run(steps(raw(lines)))
    assert [event.data["chunk"] for event in events if event.name == "output"] == texts


def test_lone_surrogates_become_replacement_characters(promises: Promises) -> None:
    lines = delta("a\ud83d") + b"\n" + delta("\ude00b") + b"\n" + delta("\udc00c\ud800") + b"\n" + delta("d") + b"\n"
    assert output(promises.occ.run(steps(raw(lines)))) == "a\U0001f600b\ufffdc\ufffdd"


def test_a_lone_surrogate_anywhere_ends_nothing(promises: Promises) -> None:
    half = "\ud800"
    retry = {"type": "system", "subtype": "api_retry", "attempt": 1, "max_retries": 2, "error": half}
    used = {"type": "tool_use", "id": half, "name": half, "input": {half: half}}
    result = {"type": "tool_result", "tool_use_id": half, "content": half}
    lines = [retry, *({"type": "assistant", "message": {"id": "m", "content": [each]}} for each in (used, result))]
    lines[-1]["type"] = "user"
    events = promises.occ.run(steps(raw(b"".join(json.dumps(line).encode() + b"\n" for line in lines))))
    assert [event.name for event in events][2:] == ["status", "tool", "tool", "complete"]
    assert events[3].data["input"] == {"\ufffd": "\ufffd"}
    assert "\ufffd" in events[2].data["message"]


@pytest.mark.parametrize("value", ["NaN", "1e999", "9" * 400])
def test_numbers_that_are_none_spoil_neither_the_record_nor_the_sums(promises: Promises, value: str) -> None:
    result = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "session_id": "x"}
    used = {"type": "tool_use", "id": "t", "name": "Read", "input": {"number": 0.5}}
    said = {"type": "assistant", "message": {"id": "m", "content": [used]}}
    lines = (said, result | {"usage": {"input_tokens": 0.5}})
    prompt = steps(*({"line": json.dumps(line).replace("0.5", value)} for line in lines), {"exit": 0})
    assert promises.occ.run(prompt, executionId="odd")[-1].name == SUCCEEDED
    for path in ("/executions/odd", "/executions/odd/events", "/usage"):
        answer = promises.occ.request("GET", path)
        assert answer.status == 200
        for text in re.findall(rb"^(?:data: )?(\{.*)$", answer.data, re.MULTILINE):
            json.loads(text, parse_constant=pytest.fail)


def test_what_is_nested_too_deeply_is_passed_over(promises: Promises) -> None:
    used = '{"type": "tool_use", "id": "t", "name": "Read", "input": ' + "[" * 700 + "]" * 700 + "}"
    said = f'{{"type": "assistant", "message": {{"id": "m", "content": [{used}]}}}}'
    assert promises.occ.run(steps({"line": said}, {"say": "on"}))[-1].name == SUCCEEDED


def test_a_cli_that_lingers_after_its_result_costs_no_cpu(promises: Promises) -> None:
    def used() -> float:
        total = 0.0
        for pid, command in promises.occ.commands().items():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "occ_worker.agent executions" in command:
                    total += sum(psutil.Process(pid).cpu_times()[:2])
        return total

    result = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "session_id": "x"}
    before = used()
    lingers = steps({"line": json.dumps(result)}, {"sleep": 60}, {"exit": 0})
    assert promises.occ.run(lingers, idleTimeoutSeconds=4)[-1].name == SUCCEEDED
    assert used() - before < 2  # of the 5 s that were waited


def test_a_cli_replaced_or_removed_between_runs_is_told(promises: Promises, folder: Path) -> None:
    occ = promises.occ
    program = folder / "counting-claude"
    good = program.read_text()
    for content, mode, code in (("\x7fELF broken", 0o700, "CLAUDE_NOT_FOUND"), (good, 0o600, "CLAUDE_NOT_FOUND")):
        program.write_text(content)
        program.chmod(mode)
        final = occ.run("x")[-1]
        assert final.data["code"] == code, final
        assert "stall" in final.data["message"] or "executable" in final.data["message"]
    program.unlink()
    assert occ.run("x")[-1].data["code"] == "CLAUDE_NOT_FOUND"
    program.write_text(good)
    program.chmod(0o700)
    assert occ.run("x")[-1].name == SUCCEEDED


@pytest.mark.parametrize("value", [["x"], {"a": 1}, "\ud800", 10**30, True, None])
def test_a_result_of_an_unknown_shape_still_ends_the_execution(promises: Promises, value: object) -> None:
    changes = {"session_id": value, "num_turns": value, "total_cost_usd": value, "usage": value, "duration_ms": value}
    events = promises.occ.run(steps({"say": "0 "}, {"result": changes}))
    assert events[-1].name == SUCCEEDED
    assert promises.occ.run(steps({"say": "0 "}))[-1].name == SUCCEEDED
