"""`python -m benchmarks.snapshots [--runs N]`: the cost of snapshots.

Two agents run the same prompt in turn in the same files, against a stand-in for the model's API on loopback: one takes
snapshots, the other has a limit of one file and takes none.
"""

from __future__ import annotations

import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.agent import Occ
from benchmarks.real_setting import real_setting
from benchmarks.report import table
from benchmarks.rows import Row
from occ_app.client.agent_client import AgentClient

_PROMPT = 'Say hello. @reply{"turns": [{"text": "Hello.", "chunks": 1}]}'
_TREES = ((5_000, 2_000, "≤ 1.05"), (20_000, 3_000, "≤ 1.15"))  # files, bytes of each, the bound of the first output
_STORED_SECONDS = 60.0


def main() -> int:
    """Run it. Returns the exit code."""
    with real_setting("snapshots") as setting:
        folder, claude, reach, runs = setting.folder, setting.claude, setting.reach, setting.runs
        without = Occ(folder / "without", claude, 1, {**reach, "OCC_SNAPSHOT_MAX_FILES": "1"})
        agents = {"empty": without, "occ": Occ(folder / "with", claude, 1, reach)}
        rows = list[Row]()
        with _started(agents) as clients:
            for files, size, aim in _TREES:
                rows += _measured(clients, _archive(folder, files, size), files, aim, runs)
    print(table(rows))
    return 0


@contextmanager
def _started(agents: dict[str, Occ]) -> Iterator[dict[str, AgentClient]]:
    try:
        for agent in agents.values():
            agent.start()
        yield {name: agent.client() for name, agent in agents.items()}
    finally:
        for agent in agents.values():
            agent.stop()


def _measured(clients: dict[str, AgentClient], archive: Path, files: int, aim: str, runs: int) -> list[Row]:
    first: dict[str, list[float]] = {name: [] for name in clients}
    final: dict[str, list[float]] = {name: [] for name in clients}
    uploads, stored = dict[str, list[float]](), list[float]()
    for name, client in clients.items():
        begun = time.monotonic()
        with archive.open("rb") as content:
            client.upload("tree", content)
        uploads[name] = [time.monotonic() - begun]
    for number in range(runs + 1):
        for name, client in clients.items():
            to_first, to_final, to_stored = _run(client)
            if number:  # the first run of each fills the disk's cache
                first[name].append(to_first)
                final[name].append(to_final)
                if name == "occ":
                    stored.append(to_stored)
    subject = f"{files:,} files"
    return [
        Row(f"{subject}: upload", "s", uploads),
        Row(f"{subject}: request → first output (beside: without snapshots)", "ms", first, aim),
        Row(f"{subject}: request → final event", "ms", final, "+ 300 ms at most"),
        Row(f"{subject}: final event → changes stored", "ms", {"occ": stored}),
    ]


def _run(client: AgentClient) -> tuple[float, float, float]:
    """Run the prompt; returns milliseconds to output, end and changes.

    The last is from the end to the changes.
    """
    execution_id = f"run-{time.time_ns()}"
    begun, first = time.monotonic(), 0.0
    for event in client.execute("tree", _PROMPT, executionId=execution_id):
        if event.name == "output" and not first:
            first = time.monotonic()
        if event.final:
            ended = time.monotonic()
            if event.name != "complete":
                raise SystemExit(f"the execution failed: {event.data}")
    while client.execution(execution_id)["changesReason"] == "pending":
        if time.monotonic() > ended + _STORED_SECONDS:
            raise SystemExit("the changes are not stored")
        time.sleep(0.002)
    return 1000 * (first - begun), 1000 * (ended - begun), 1000 * (time.monotonic() - ended)


def _archive(folder: Path, files: int, size: int) -> Path:
    """Return a zip of source files of about this size, 100 in a folder."""
    path = folder / f"{files}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        zipped.writestr(".gitignore", "*.pyc\n__pycache__/\n/build\ndist/*.whl\n.venv/\n")
        for number in range(files):
            text = f"# file {number}\n"
            text += "".join(f"value_{line} = {number * line}\n" for line in range(size // 20))
            zipped.writestr(f"src/package_{number // 100}/module_{number}.py", text)
    return path


if __name__ == "__main__":
    sys.exit(main())
