"""`python -m benchmarks.real_wait [--runs N]`: a person's wait for the real CLI.

The time to the first text over the API, with `occ run` and with `occ chat`, beside `claude -p` alone, in turn. All ask
a stand-in for the model's API on loopback that answers at once, so this measures the CLI's start, and the time that
OCC adds or saves. One agent has spare processes, another has none, and a third one with spare processes is for the
chats: they have other permissions, so they need other spares.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks import processes
from benchmarks.agent import Occ
from benchmarks.real_setting import real_setting
from benchmarks.report import table
from benchmarks.rows import Row

_TEXT = "Hello-from-the-model"
_PROMPT = 'Say hello. @reply{"turns": [{"text": "%s", "chunks": 1}]}' % _TEXT  # noqa: UP031 - braces of its own
_LIMIT_SECONDS = 60.0
_WORKERS = 2
_STILL_SECONDS = 0.5  # without use of the processor, after which a spare process has loaded
_IDLE_SECONDS = 20.0


def main() -> int:
    """Run it. Returns the exit code."""
    with real_setting("real_wait") as setting, contextlib.ExitStack() as stack:
        folder, claude, reach, runs = setting.folder, setting.claude, setting.reach, setting.runs
        warm = stack.enter_context(_started(Occ(folder / "warm", claude, _WORKERS, reach)))
        cold = stack.enter_context(_started(Occ(folder / "cold", claude, 1, reach | {"OCC_WARM_PROCESSES": "0"})))
        chats = stack.enter_context(_started(Occ(folder / "chats", claude, _WORKERS, reach)))
        alone = {"PATH": os.environ["PATH"], "HOME": str(folder), "DISABLE_AUTOUPDATER": "1", **reach}
        alone["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1"
        run = warm.argv("run", "--workspace", "lane-0", _PROMPT)
        ways: dict[tuple[str, ...], Callable[[], Sequence[float]]] = {
            ("claude",): lambda: [_first_text([str(claude), "-p", _PROMPT, *_STREAMING], alone, folder)],
            ("new",): lambda: [_answer(warm, f"new-{uuid.uuid4()}")],
            ("cold",): lambda: [_answer(cold, f"cold-{uuid.uuid4()}")],
            ("next",): lambda: [_answer(warm, f"next-{uuid.uuid4()}", continues=_newest(warm))],
            ("run",): lambda: [_first_text(run, warm.environment, folder)],
            ("chat", "chat next"): lambda: _chatted(chats, folder),
        }
        samples: dict[str, list[float]] = {name: [] for names in ways for name in names}
        for _ in range(runs + 1):
            for names, way in ways.items():
                for occ in (warm, chats):
                    _await_spares(occ)
                for name, value in zip(names, way(), strict=True):
                    samples[name].append(value)
        _report({name: values[1:] for name, values in samples.items()})  # the first of each fills the disk's cache
        _report_idle(warm)
    return 0


@contextlib.contextmanager
def _started(occ: Occ) -> Iterator[Occ]:
    """Run an agent."""
    occ.start()
    try:
        yield occ
    finally:
        occ.stop()


def _report(samples: Mapping[str, list[float]]) -> None:
    named = {
        "new": ("POST /execute → first text, new conversation, with a spare process", "≤ 0.40"),
        "cold": ("the same with OCC_WARM_PROCESSES=0", ""),
        "next": ("POST /execute → first text, next turn of a conversation", "≤ 0.20"),
        "run": ("`occ run` called → first text on the terminal", ""),
        "chat": ("prompt given to `occ chat` → first text, new conversation", ""),
        "chat next": ("the same, next turn", ""),
    }
    rows = [
        Row(text, "ms", {"claude": samples["claude"], "occ": samples[name]}, aim) for name, (text, aim) in named.items()
    ]
    print(table(rows), "beside: `claude -p`", sep="\n")


def _report_idle(occ: Occ) -> None:
    """Print processor time and memory of the idle agent and its spare processes."""
    spares = _await_spares(occ)
    everything = [*occ.processes()]
    before = [_cpu_seconds(everything), _cpu_seconds(spares)]
    time.sleep(_IDLE_SECONDS)
    used = [_cpu_seconds(everything) - before[0], _cpu_seconds(spares) - before[1]]
    shares = [100 * seconds / _IDLE_SECONDS for seconds in used]
    memory = ", ".join(f"{processes.pss_mb(spare):.0f}" for spare in spares)
    print(
        f"idle: {shares[0]:.2f} % of a core in all, {shares[1]:.2f} % in {len(spares)} spares; PSS of each {memory} MB"
    )


def _cpu_seconds(measured: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in measured)


def _await_spares(occ: Occ) -> list[psutil.Process]:
    """Wait until all processes that wait for work have loaded, and return them."""
    before: dict[int, float] = {}
    while True:
        spares = [process for process in occ.processes() if _is_spare(process)]
        used = {process.pid: sum(process.cpu_times()[:2]) for process in spares}
        if len(used) == _WORKERS and used == before:
            return spares
        before = used
        time.sleep(_STILL_SECONDS)


def _is_spare(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "--input-format" in process.cmdline()
    return False


def _await_stillness(process: psutil.Process) -> None:
    """Wait until a process has loaded."""
    before = -1.0
    while (used := sum(process.cpu_times()[:2])) != before or not used:
        before = used
        time.sleep(_STILL_SECONDS)


def _newest(occ: Occ) -> str:
    """Return the id of the newest execution."""
    with contextlib.closing(occ.client()) as client:
        return str(client.executions(limit=1)["executions"][0]["executionId"])


def _answer(occ: Occ, execution_id: str, **options: str) -> float:
    """Milliseconds from a request to the first text of its execution."""
    with contextlib.closing(occ.client()) as client:
        client.health()  # a client that has no connection would wait for that, too
        begun, first = time.monotonic(), 0.0
        for event in client.execute("lane-0", _PROMPT, executionId=execution_id, **options):
            if event.name == "output" and not first:
                first = time.monotonic() - begun
    if not first:
        raise SystemExit(f"no text came from execution {execution_id}")
    return 1000 * first


def _chatted(occ: Occ, folder: Path) -> tuple[float, float]:
    """Return the milliseconds from a prompt of `occ chat` to the text of its answer.

    The prompt is on the input of the chat; the two times are those of the first two turns.
    """
    with subprocess.Popen(
        occ.argv("chat", "--workspace", "lane-0"),
        env=occ.environment,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        _await_stillness(psutil.Process(process.pid))
        new = _said(process)
        _await_spares(occ)  # the process is kept then, and the chat waits for the next prompt
        following = _said(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(_LIMIT_SECONDS)
    return new, following


def _said(process: subprocess.Popen[bytes]) -> float:
    """Return the milliseconds from a prompt on a command's input to the model's text."""
    assert process.stdin is not None
    assert process.stdout is not None
    seen, begun = b"", time.monotonic()
    process.stdin.write(_PROMPT.encode() + b"\n")
    while _TEXT.encode() not in seen:
        piece = os.read(process.stdout.fileno(), 65536)
        if not piece:
            raise SystemExit(f"no text came from `occ chat`: {seen[-500:].decode(errors='replace')}")
        seen += piece
    return 1000 * (time.monotonic() - begun)


_STREAMING = ("--output-format", "stream-json", "--verbose", "--include-partial-messages", "--setting-sources", "user")


def _first_text(argv: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
    """Return the milliseconds from the start of a command to the model's text."""
    begun = time.monotonic()
    with subprocess.Popen(
        argv,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        seen, first = b"", 0.0
        while piece := os.read(process.stdout.fileno(), 65536):
            seen += piece
            if not first and _TEXT.encode() in seen:
                first = time.monotonic() - begun
        process.wait(_LIMIT_SECONDS)
    if not first:
        raise SystemExit(f"no text came from {argv[:3]}: {seen[-500:].decode(errors='replace')}")
    return 1000 * first


if __name__ == "__main__":
    sys.exit(main())
