"""The lines that `occ run` prints about an execution: each is true at the time it is printed."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from occ_app.cli import output, transcript
from occ_app.cli.commands import occ as occ_command
from occ_app.cli.run import Limit
from occ_app.client.sse import StreamEvent
from tests.conftest import Occ, steps, wait_until
from tests.terminal import occ_at_terminal


def test_a_failed_tool_is_called_failed_and_the_time_is_that_of_the_record(agent: Occ) -> None:
    prompt = steps({"tool": "Read", "input": {"file_path": "a"}, "result": "No such file", "error": True}, {"say": "x"})
    done = agent.command("run", prompt, "--workspace", "work")
    assert "[failed] No such file" in done.stderr
    assert "refused" not in done.stderr
    record = agent.client.execution(re.search(r"run-[a-z2-7]{10}", done.stderr)[0])
    assert f"done: {output.took(record)}," in done.stderr  # the stand-in reports 12 ms
    assert output.took(record) in agent.command("jobs").stdout


def test_an_id_is_printed_once_it_is_accepted(agent: Occ) -> None:
    refused = agent.command("run", "hi", "--workspace", "none", check=False)
    assert (refused.returncode != 0, "run-" in refused.stderr) == (True, False)
    accepted = agent.command("run", "hi", "--workspace", "work", "--json")
    assert "run-" in accepted.stderr
    assert json.loads(accepted.stdout.splitlines()[0])["event"] == "queued"


def test_a_session_that_is_not_found_is_not_offered_again(agent: Occ) -> None:
    lost = {"is_error": True, "subtype": "error_during_execution", "result": "No conversation found with session ID: x"}
    done = agent.command("run", steps({"result": lost}), "--workspace", "work", check=False)
    assert "SESSION_NOT_FOUND" in done.stderr
    assert "--session" not in done.stderr


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("Exit code 3\none\n\ntwo\n", "[failed] exit code 3\n  one\n  two"),
        ("Exit code 1\n" + "\n".join("abcdefg"), "[failed] exit code 1\n  …\n  c\n  d\n  e\n  f\n  g"),
        ("<tool_use_error>File does not exist.</tool_use_error>", "[failed] File does not exist."),
        ("a\nb\x1b[31m", "[failed]\n  a\n  b\\x1b[31m"),
        ("Claude requested permissions to use Bash, but you haven't granted it yet.", "[refused] Claude requested"),
        ("Permission to use Bash with command rm has been denied.", "[refused] Permission to use"),
        ("PreToolUse:Bash hook error: not now", "[refused] not now"),
        ("cat: /etc/shadow: Permission denied", "[failed] cat: /etc/shadow: Permission denied"),
        ("", "[failed]"),
    ],
)
def test_a_failed_tool_is_shown_with_its_exit_code_and_last_lines(result: str, shown: str) -> None:
    data = {"toolUseId": "t", "result": result, "isError": True}
    text = transcript._text(StreamEvent(2, "tool", data), {"t": "Bash"})
    assert text is not None
    assert text.strip().startswith(shown) if shown.startswith("[refused]") else text.strip() == shown


class Screen(io.StringIO):
    """A terminal that keeps each character."""

    def isatty(self) -> bool:
        return True


def test_a_text_that_is_printed_under_a_progress_line_clears_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("NO_COLOR", "1")

    def events() -> Iterator[StreamEvent]:
        for print_text, text in ((output.note, "the id"), (output.warn, "careful"), (output.echo, "a line")):
            wait_until(lambda: re.search(r"waiting \S \d+ s$", screen.getvalue()), "a progress line")
            print_text(text, **({"err": True} if print_text is output.echo else {}))
        yield StreamEvent(1, "complete", {})

    transcript.print_events(events(), as_json=False, waiting="waiting")
    for text in ("the id\n", "warning: careful\n", "a line\n"):
        assert screen.getvalue().partition(text)[0].endswith("\r\033[K")


def test_the_last_line_of_a_terminal_names_the_tool_that_runs(agent: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    prompt = steps(
        {"say": "first\n"},
        {"tool": "Bash", "input": {"command": "make all"}, "wait": str(gate), "result": "ok"},
        {"say": "last\n"},
    )
    with occ_at_terminal(agent.environment, "run", "--workspace", "work", prompt) as terminal:
        terminal.until_like("Bash make all … \\d+ s")
        gate.touch()
        terminal.until("done")
        assert terminal.wait() == 0


def test_a_run_can_be_left_at_once(agent: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    left = agent.command("run", "-d", "--workspace", "work", steps({"wait": str(gate)}, {"say": "x"}))
    execution_id = left.stdout.strip()
    assert agent.client.execution(execution_id)["state"] in ("queued", "running")
    gate.touch()
    assert list(agent.client.events(execution_id))[-1].name == "complete"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["Read", "this", "project"], "occ run 'Read this project'"),
        (["--timeout", "soon", "hello"], "5m"),
        (["--timeout", "0", "hello"], "5m"),
    ],
)
def test_mistakes_with_quotes_and_limits_are_answered_with_the_right_form(arguments: list[str], part: str) -> None:
    shown = CliRunner().invoke(occ_command, ["run", *arguments])
    assert shown.exit_code == 2
    assert part in shown.stderr


@pytest.mark.parametrize(("given", "seconds"), [("300", 300), ("0.5", 0.5), ("90s", 90), ("5m", 300), ("2h", 7200)])
def test_a_time_limit_may_have_a_unit(given: str, seconds: float) -> None:
    assert Limit().convert(given, None, None) == seconds
