"""Doors of the CLI that OCC keeps shut, each with a canary: the real CLI without OCC's flag goes through it.

The CLI runs with OCC's own arguments and environment, without a daemon, and then with one of them taken away.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from occ_app.claude import program, projects
from occ_app.config import config as configuration
from occ_app.executions.records import Execution
from occ_worker.execution import command
from tests.model_api import FAKE_KEY, ModelApi
from tests.test_hostile_workspaces import SCHEDULED, Canaries, attacker, poison, write
from tests.test_projects import picture
from tests.test_real_cli import reply

__all__ = ["attacker"]  # a fixture

pytestmark = pytest.mark.real_cli

NONE = dict.fromkeys(field.name for field in dataclasses.fields(Execution))
EXECUTION = cast("Callable[..., Execution]", Execution)(
    **NONE | {"number": 1, "execution_id": "x", "prompt": "", "permissions": "edit"}
)


@dataclasses.dataclass(frozen=True)
class Cli:
    """The real CLI as OCC starts it, in the folder `work` of its own home."""

    path: Path
    version: str
    model: ModelApi
    home: Path

    @property
    def work(self) -> Path:
        return self.home / "work"

    def run(
        self,
        prompt: str,
        *,
        without: Iterable[str] = (),
        instead: Mapping[str, str] | None = None,
        line: bytes | None = None,
        trusted: bool = False,
        reach: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """Run one prompt to the end of the process and return the lines it printed.

        `without` names variables, or an argument to drop with its value; `instead` replaces arguments; `reach` has
        the variables by which the CLI finds a model.
        """
        config = configuration.load(
            {
                "OCC_HOME": str(self.home / ".occ"),
                "HOME": str(self.home),
                "PATH": os.defpath,
                "ANTHROPIC_BASE_URL": self.model.url,
                **({"ANTHROPIC_API_KEY": FAKE_KEY} if reach is None else reach),
            }
        )
        argv = command.command(str(self.path), EXECUTION, None, config, trusted=trusted)
        for name in without:
            if name in argv:
                place = argv.index(name)
                del argv[place : place + 2]
        argv = [(instead or {}).get(word, word) for word in argv]
        environment = {name: value for name, value in command.environment(config).items() if name not in without}
        with subprocess.Popen(
            argv,
            cwd=self.work,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as cli:
            assert cli.stdin is not None
            assert cli.stdout is not None
            try:
                cli.stdin.write(command.prompt_line(prompt) if line is None else line)
                cli.stdin.flush()
                lines = []
                for printed in cli.stdout:
                    lines.append(json.loads(printed))
                    if lines[-1]["type"] == "result":
                        cli.stdin.close()
                return lines
            finally:
                cli.kill()

    def sent(self) -> str:
        """All that reached the model, as JSON."""
        return json.dumps([request["body"] for request in self.model.requests()])

    def told(self, lines: list[dict[str, Any]]) -> list[bool]:
        """For each call of a tool whether it failed."""
        blocks = [
            block
            for line in lines
            if line["type"] == "user" and isinstance(line["message"]["content"], list)
            for block in line["message"]["content"]
        ]
        return [bool(block.get("is_error")) for block in blocks if block.get("type") == "tool_result"]


@pytest.fixture
def cli(tmp_path: Path, release: str, real_claude: Path, model: ModelApi) -> Cli:
    (tmp_path / "home/work").mkdir(parents=True)
    return Cli(real_claude, release, model, tmp_path / "home")


def schedule(folder: Path, prompt: str) -> None:
    """A task of yesterday, which the CLI catches up on at its start."""
    (folder / ".claude").mkdir()
    made = int(time.time() * 1000) - 86_400_000
    task = {"id": "2bff2fb8", "cron": "0 1 30 11 *", "prompt": prompt, "createdAt": made}
    (folder / ".claude/scheduled_tasks.json").write_text(json.dumps({"tasks": [task]}))


def test_scheduled_tasks_of_a_workspace_do_not_run(cli: Cli) -> None:
    schedule(cli.work, "PROMPT-NOBODY-SENT")
    cli.run("Hello. " + reply({"text": "hi"}))
    assert "PROMPT-NOBODY-SENT" not in cli.sent()


def test_scheduled_tasks_would_run_without_the_variable(cli: Cli) -> None:
    schedule(cli.work, "PROMPT-NOBODY-SENT")
    cli.run("Hello. " + reply({"text": "hi"}), without=["CLAUDE_CODE_DISABLE_CRON"])
    assert "PROMPT-NOBODY-SENT" in cli.sent()


OUTSIDE = {"text": "a", "tools": [{"name": "Read", "input": {"file_path": "/etc/passwd"}}]}


@pytest.mark.parametrize("mode", ["acceptEdits", "plan", "auto", "default"])
def test_no_mode_reads_outside_the_workspace_unasked(cli: Cli, mode: str) -> None:
    lines = cli.run("Read it. " + reply(OUTSIDE, {"text": "done"}), instead={"acceptEdits": mode})
    assert cli.told(lines) == [True]
    assert "root:x:0" not in cli.sent()


def test_plan_mode_would_read_outside_without_the_setting(cli: Cli) -> None:
    lines = cli.run(
        "Read it. " + reply(OUTSIDE, {"text": "done"}), without=["--settings"], instead={"acceptEdits": "plan"}
    )
    assert cli.told(lines) == [cli.version == "2.1.197"]  # which asks in plan mode without a setting


def mention(cli: Cli) -> str:
    secret = cli.home / "secret.txt"
    secret.write_text("SECRET-OF-THE-OPERATOR")
    (cli.work / "inside.txt").write_text("TEXT-OF-THE-WORKSPACE")
    return f"Compare @{secret} with @inside.txt and @/etc/hostname. {reply({'text': 'No.'})}"


def unset(cli: Cli) -> list[str]:
    """The variables OCC leaves out for this version."""
    return [command.ALL_ATTACHMENTS] if program.knows_file_mentions(cli.version) else []


def test_a_mention_attaches_nothing(cli: Cli) -> None:
    cli.run(mention(cli), without=unset(cli))
    assert "SECRET-OF-THE-OPERATOR" not in cli.sent()
    assert "TEXT-OF-THE-WORKSPACE" not in cli.sent()


@pytest.mark.parametrize("shut", ["variable", "mark", "neither"])
def test_a_mention_would_attach_a_file_where_nothing_forbids_it(cli: Cli, shut: str) -> None:
    """Either of the two, the variable and the mark of the line, is enough where the version knows them."""
    prompt = mention(cli)
    plain = json.loads(command.prompt_line(prompt))
    if shut != "mark":
        del plain["client_composed"]
    without = [command.ALL_ATTACHMENTS, *(() if shut == "variable" else ["CLAUDE_CODE_DISABLE_FILE_MENTIONS"])]
    cli.run(prompt, without=without, line=json.dumps(plain).encode() + b"\n")
    known = program.knows_file_mentions(cli.version)
    assert ("SECRET-OF-THE-OPERATOR" in cli.sent()) is (shut == "neither" or not known)


def test_the_reminders_of_plan_mode_reach_the_model_where_the_version_allows_it(cli: Cli) -> None:
    cli.run("Plan. " + reply({"text": "ok"}), without=unset(cli), instead={"acceptEdits": "plan"})
    assert ("plan mode is active" in cli.sent().lower()) is program.knows_file_mentions(cli.version)


def project(cli: Cli, canaries: Canaries) -> None:
    """Make the folder one that runs things in a terminal."""
    events = ("SessionStart", "UserPromptSubmit", "Stop")
    hooks = {
        event: [{"matcher": "", "hooks": [{"type": "command", "command": canaries.command(event)}]}] for event in events
    }
    server = {"command": "sh", "args": ["-c", canaries.command("mcp")]}
    for name, content in (
        ("settings.json", {"hooks": hooks}),
        ("settings.local.json", {"model": "a-model-of-the-project"}),
    ):
        write(cli.work / ".claude" / name, json.dumps(content))
    write(cli.work / ".mcp.json", json.dumps({"mcpServers": {"own": server}}))
    write(cli.work / "CLAUDE.md", "TEXT-OF-THE-PROJECT")


def test_a_project_s_settings_hooks_and_servers_stay_unread_without_trust(
    cli: Cli, attacker: ModelApi, tmp_path: Path
) -> None:
    """Also all that an upload would not have been stored with; and no file of the project changes."""
    canaries = Canaries(tmp_path / "canaries")
    project(cli, canaries)
    poison(cli.work, canaries, attacker)
    before = picture(cli.work)
    cli.run("Hello. " + reply({"text": "hi"}))
    assert canaries.sung == []
    assert attacker.requests() == []
    assert SCHEDULED not in cli.sent()
    assert "a-model-of-the-project" not in cli.sent()
    assert picture(cli.work) == before


def test_they_apply_with_trust(cli: Cli, tmp_path: Path) -> None:
    canaries = Canaries(tmp_path / "canaries")
    project(cli, canaries)
    cli.run("Hello. " + reply({"text": "hi"}), trusted=True)
    assert set(canaries.sung) == {"SessionStart", "UserPromptSubmit", "Stop", "mcp"}
    assert "TEXT-OF-THE-PROJECT" in cli.sent()
    assert "a-model-of-the-project" in cli.sent()


def test_a_session_of_a_terminal_is_known_by_its_folder(cli: Cli) -> None:
    lines = cli.run("Hello. " + reply({"text": "hi"}), trusted=True)
    session = lines[-1]["session_id"]
    assert projects.has_session(cli.home / ".claude", cli.work, session)
    assert not projects.has_session(cli.home / ".claude", cli.home, session)
