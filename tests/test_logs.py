"""The logs: a line for each record with its part and execution, files of bounded size, and `occ logs`."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from occ_app.cli.commands import occ as occ_command
from occ_app.supervisor.processes import Part
from occ_app.system import log_reading, logs
from tests.conftest import Occ, wait_until

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) (\w+) (\S+) [\w.]+: .*")


def written(shape: str, execution: str | None, *, fault: bool = False) -> str:
    """What a record becomes in a log."""
    logs.set_execution(None)  # a request that another test made in this thread may have named one
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.formatter("worker", shape))
    logger = logging.Logger("occ.test")
    logger.addHandler(handler)
    try:
        with logs.execution(execution or "-"):
            if fault:
                raise ValueError("first\nsecond")
            logger.warning("it is %s\nreally", "slow")
    except ValueError:
        logger.exception("it failed")
    return stream.getvalue()


def test_a_record_is_one_line_with_its_part_and_execution() -> None:
    line = written("text", "run-1")
    match = LINE.fullmatch(line.rstrip("\n"))
    assert match is not None, line
    assert match.groups() == ("WARNING", "worker", "run-1")
    outside = LINE.fullmatch(written("text", None).rstrip("\n"))
    assert outside is not None
    assert outside[3] == "-"


def test_a_record_in_json_is_one_line_even_with_a_traceback() -> None:
    lines = written("json", None, fault=True).splitlines()
    assert len(lines) == 1
    record = json.loads(lines[0])
    assert list(record) == ["time", "level", "part", "execution", "logger", "message", "traceback"]
    assert (record["part"], record["execution"], record["message"]) == ("worker", None, "it failed")
    assert json.loads(written("json", "run-1"))["execution"] == "run-1"


def test_an_id_of_a_request_forges_no_record() -> None:
    line = written("text", "a b\n2026-01-01T00:00:00.000Z INFO web - occ:" + "x" * 1000)
    assert line.count("\n") == 1
    assert " a?b?2026" in line


WRITER = """
import sys, logging
from pathlib import Path
from occ_app.system import logs
path = Path(sys.argv[1])
logs.log_to_stderr("worker", "text", path)
handler = logs.handler()
assert isinstance(handler, logs.RotatingHandler)
handler._max_bytes = 20_000
for number in range(1000):
    logging.getLogger("occ").info("%s %d", sys.argv[2], number)
print("a word of the interpreter", file=sys.stderr)
"""


def test_processes_that_share_a_log_keep_it_small_and_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    with path.open("ab") as output:
        writers = [
            subprocess.Popen([sys.executable, "-P", "-c", WRITER, str(path), name], stderr=output) for name in "abc"
        ]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["worker.log", "worker.log.1", "worker.log.2", "worker.log.3"]
    for name in files:
        assert (tmp_path / name).stat().st_size < 20_000 + 3 * 200
    text = "".join((tmp_path / name).read_text() for name in reversed(files))
    for name in "abc":  # the oldest lines went with the oldest file; of the rest each is there, once, in order
        numbers = [int(number) for number in re.findall(rf" occ: {name} (\d+)\n", text)]
        assert numbers == list(range(1000))[1000 - len(numbers) :]  # none, if this process was done long before
    assert len(text) > 3 * 20_000


def test_a_log_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    handler = logs.RotatingHandler(path, logs.open_log(path))
    logger = logging.Logger("occ")
    logger.addHandler(handler)
    logger.info("one")
    path.unlink()
    logger.info("two")
    assert path.read_text() == "two\n"
    handler.stream.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the logs of two parts, the older of one put aside."""
    folder = tmp_path / "home"
    (folder / "logs").mkdir(parents=True)
    monkeypatch.setenv("OCC_HOME", str(folder))
    (folder / "logs" / "web.log").write_text(
        "2026-01-01T10:00:02.000Z INFO web - occ.web: second\n"
        "2026-01-01T10:00:04.000Z ERROR web run-b occ.web: fourth\n  Traceback\n  ValueError\n"
    )
    (folder / "logs" / "worker.log.1").write_text("2026-01-01T10:00:01.000Z INFO worker run-a occ: first\n")
    (folder / "logs" / "worker.log").write_text(
        '{"time": "2026-01-01T10:00:03.000Z", "level": "INFO", "execution": "run-a", "message": "third"}\n'
    )
    return folder


def shown(*arguments: str) -> list[str]:
    result = CliRunner().invoke(occ_command, ["logs", *arguments])
    assert result.exit_code == 0, result.output
    return list(re.findall(r"first|second|third|fourth|ValueError", result.output))


def records_of(path: Path) -> list[log_reading.Record]:
    with contextlib.closing(log_reading.Logs([path])) as opened:
        return list(opened.read(whole=False))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["first", "second", "third", "fourth", "ValueError"]),
        (("web",), ["second", "fourth", "ValueError"]),
        (("worker",), ["first", "third"]),
        (("--execution", "run-a"), ["first", "third"]),
        (("--execution", "run-b"), ["fourth", "ValueError"]),
        (("--execution", "run"), ["first", "third", "fourth", "ValueError"]),
        (("-n", "2"), ["third", "fourth", "ValueError"]),
        (("--since", "1d"), []),
        (("--since", "9999w"), ["first", "second", "third", "fourth", "ValueError"]),
    ],
)
def test_records_of_all_parts_are_shown_by_time(home: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    assert shown(*arguments) == words


def test_lines_of_an_older_version_are_ordered_too(home: Path) -> None:
    (home / "logs" / "control.log").write_text("2026-01-01 10:00:02,500 INFO occ.link: first\nnoise\n")
    (record,) = records_of(home / "logs" / "control.log")
    assert record.text == "2026-01-01 10:00:02,500 INFO occ.link: first\nnoise"
    assert len(shown()) == 6


def test_a_long_log_is_read_from_its_end(home: Path) -> None:
    line = "2026-01-01T10:00:00.000Z INFO web - occ.web: " + "x" * 1000 + "\n"
    (home / "logs" / "web.log").write_text(line * 3000 + "2026-01-01T10:00:09.000Z INFO web - occ.web: fourth\n")
    assert shown("web", "-n", "1") == ["fourth"]
    found = records_of(home / "logs" / "web.log")
    assert len(found) < 1100
    assert all(record.time for record in found)


def test_a_log_is_followed_over_its_rotation(home: Path) -> None:
    path, seen = home / "logs" / "web.log", list[str]()
    opened = log_reading.Logs([path])
    assert not opened.added(seen.append)
    with path.open("a") as file:
        file.write("one\nhal")
    assert opened.added(seen.append)
    with path.open("a") as file:
        file.write("f\n")
    assert logs.put_aside(path, 1)
    path.write_text("three\n")
    opened.added(seen.append)
    opened.close()
    assert seen == ["one", "half", "three"]


def test_without_logs_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCC_HOME", str(tmp_path / "home"))
    result = CliRunner().invoke(occ_command, ["logs"])
    assert "occ start" in str(result.exception)


def test_a_run_s_records_are_found_by_its_id(agent: Occ) -> None:
    agent.run("hi", executionId="run-of-logs")
    wait_until(
        lambda: "run-of-logs" in agent.command("logs", "worker", "--execution", "run-of-logs").stdout, "a record"
    )
    lines = agent.command("logs").stdout.splitlines()
    assert all(LINE.fullmatch(line) or line.startswith("  ") for line in lines), lines


@pytest.fixture
def following(agent: Occ) -> Iterator[tuple[Occ, list[str]]]:
    """`occ logs -f` of a running agent, and the lines that it prints."""
    command = [sys.executable, "-m", "occ_app.cli", "logs", "-f", "--execution", "run-followed"]
    process = subprocess.Popen(command, env=agent.environment, stdout=subprocess.PIPE, text=True)
    lines = list[str]()

    def read() -> None:
        assert process.stdout is not None
        lines.extend(process.stdout)

    thread = threading.Thread(target=read)
    thread.start()
    yield agent, lines
    process.terminate()
    process.wait()
    thread.join()
    assert process.stdout is not None
    process.stdout.close()


def test_new_records_are_followed(following: tuple[Occ, list[str]]) -> None:
    agent, lines = following
    counted = iter(range(1000))

    def printed() -> Any:
        if not lines:  # it may not follow yet
            agent.run("hi", executionId=f"run-followed-{next(counted)}")
        return lines

    wait_until(printed, "a record of a new run", 60)
    assert " run-followed-" in lines[0]


def test_a_daemon_logs_json_when_it_is_told_to(occ: Occ) -> None:
    occ.start(OCC_LOG_FORMAT="json")
    occ.stop()
    lines = [line for path in (occ.home / "logs").glob("*.log") for line in path.read_text().splitlines()]
    assert all(json.loads(line)["time"].endswith("Z") for line in lines)


def test_a_part_that_is_started_again_writes_to_the_current_log(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    part = Part("web", f"{sys.executable} -c 'import sys; sys.stderr.write(\"hi\")'", {}, path)
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            part.start(listener.fileno())
            wait_until(part.died, "it to end")
        logs.put_aside(path, 1)
    assert [(tmp_path / f"web.log.{number}").read_text() for number in (1, 2)] == ["hi", "hi"]
