"""`python -m benchmarks.parked_resumes [--resumes N]`: count unasked calls.

The real CLI defers a call once, and resumes it many times, two at once, with the command line that OCC uses. The call
is denied wherever the CLI asks about it, so a file that it makes shows that it ran unasked. Half of the resumes have
settings of the user that grant the tool; OCC's hook is registered at once, late, or never.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occ_app.config import config as configuration
from occ_app.executions.answers import Approval
from occ_app.executions.parking import Parked
from occ_app.executions.records import Execution
from occ_app.executions.spent import Spent
from occ_worker.execution import command
from occ_worker.execution.permissions import initialize_line
from occ_worker.execution.resumable import FRESH, Resumable
from tests import model_api, real_cli

VERSIONS = tuple(version for version in real_cli.SUPPORTED if version != "2.1.197")
GRANTS: tuple[Mapping[str, Any] | None, ...] = (
    None,
    {"permissions": {"allow": ["Bash"], "defaultMode": "bypassPermissions"}, "disableAllHooks": True},
)
DELAYS: tuple[float | None, ...] = (0.0, 1.0, None)  # of OCC's hook in seconds; None: it is never registered
_PROMPT = (
    'Do it. @reply{"turns": [{"tools": [{"name": "Bash", "input": {"command": "touch ran", "description": "d"}}]},'
    ' {"text": "Done."}]}'
)
_LIMIT_SECONDS = 120.0


@dataclass(frozen=True)
class Session:
    """A folder with `home` and `work` of a CLI that deferred a call.

    With the ids of the session and the call.
    """

    folder: Path
    session_id: str
    tool_use_id: str


class Cli:
    """One process of the CLI, ended after a limit.

    `lines` yields its output line by line.
    """

    def __init__(self, argv: list[str], home: Path, work: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            argv,
            cwd=work,
            env={**environment, "HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._timer = threading.Timer(_LIMIT_SECONDS, self._process.kill)
        self._timer.start()

    def send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Return the next line; an empty object at the end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {}

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._timer.cancel()


def main() -> int:
    """Run it for each version. Returns 1 when a call ran unasked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parked_resumes")
    parser.add_argument("--resumes", type=int, default=300, help="of each version")
    parser.add_argument("--version", action="append", choices=VERSIONS)
    options = parser.parse_args()
    unasked = 0
    with tempfile.TemporaryDirectory(prefix="occ-resumes-") as scratch, model_api.serve() as model:
        for version in options.version or VERSIONS:
            claude = str(real_cli.install(real_cli.default_cache(), version))
            folder = Path(scratch) / version
            begun = time.monotonic()
            counted = _try(claude, folder, model.url, options.resumes)
            unasked += counted["unasked"]
            print(f"{version}: {json.dumps(counted, sort_keys=True)} in {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if unasked else 0


def _try(claude: str, folder: Path, url: str, resumes: int) -> Counter[str]:
    config = configuration.load({"HOME": str(folder), "OCC_HOME": str(folder / "occ"), "PATH": "/usr/bin:/bin"}, {})
    reach = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": model_api.FAKE_KEY}
    environment = {**command.environment(config), **reach}
    parked = _park(claude, folder / "parked", environment, config)
    kinds = itertools.cycle(itertools.product(GRANTS, DELAYS))
    jobs = [(number, *kind) for number, kind in zip(range(resumes), kinds, strict=False)]
    counted: Counter[str] = Counter()
    with ThreadPoolExecutor(2) as two:
        for found in two.map(
            lambda job: _resume(claude, folder / f"run-{job[0]}", environment, config, parked, job), jobs
        ):
            counted.update(found)
    counted["unasked"] += 0  # shown, too
    return counted


def _execution(session_id: str | None) -> Execution:
    values = dict.fromkeys(Execution.__dataclass_fields__)
    known = {"number": 1, "execution_id": "x", "permissions": "ask", "session_id": session_id, "wanted_labels": ()}
    return Execution(**{**values, **known})  # type: ignore[arg-type]  # only these are read


def _park(claude: str, folder: Path, environment: Mapping[str, str], config: configuration.Config) -> Session:
    """Have the CLI defer a call, in a folder that the resumes copy."""
    work = folder / "work"
    work.mkdir(parents=True)
    argv = command.command(claude, _execution(None), None, config, FRESH)
    cli = Cli(argv, folder / "home", work, environment)
    cli.send(initialize_line() + command.prompt_line(_PROMPT))
    while line := cli.read():
        if line.get("type") == "control_request":
            output = {"hookEventName": "PreToolUse", "permissionDecision": "defer"}
            cli.send(_reply(line, {"hookSpecificOutput": output}))
        if line.get("type") == "result":
            break
    cli.end()
    assert line.get("stop_reason") == "tool_deferred", line
    return Session(folder, line["session_id"], line["deferred_tool_use"]["id"])


def _resume(
    claude: str,
    folder: Path,
    environment: Mapping[str, str],
    config: configuration.Config,
    session: Session,
    job: tuple[int, Mapping[str, Any] | None, float | None],
) -> Counter[str]:
    """Resume a copy of the session, deny what is asked, and count how that went."""
    _, granted, delay = job
    shutil.copytree(session.folder / "home", folder / "home")
    work = session.folder / "work"  # sessions belong to their folder
    if granted is not None:
        (folder / "home/.claude").mkdir(exist_ok=True)
        (folder / "home/.claude/settings.json").write_text(json.dumps(granted))
    approval = Approval(**{**dict.fromkeys(Approval.__dataclass_fields__), "tool": "Bash"})  # type: ignore[arg-type]
    resumable = Resumable(knows_defer=True, parked=Parked(approval, session.tool_use_id, Spent()))
    argv = command.command(claude, _execution(session.session_id), None, config, resumable)
    cli = Cli(argv, folder / "home", work, {**environment, **command.RESUME_INTERRUPTED})
    if delay:
        time.sleep(delay)
    hook = b'{"type":"control_request","request_id":"i","request":{"subtype":"initialize"}}\n'
    cli.send(hook if delay is None else initialize_line())
    asked = _deny(cli)
    cli.end()
    shutil.rmtree(folder)
    kind = f"{'granted' if granted else 'not granted'}, hook {'never' if delay is None else f'after {delay:g} s'}"
    return Counter({f"{kind}: {asked}": 1, "resumed": 1, "unasked": int((work / "ran").exists())})


def _deny(cli: Cli) -> str:
    """Leave hooks to the CLI and deny its question.

    Returns the requests by which it asked.
    """
    asked = []
    while line := cli.read():
        if line.get("type") == "control_request":
            kind = line["request"]["subtype"]
            asked.append(kind)
            cli.send(_reply(line, {} if kind == "hook_callback" else {"behavior": "deny", "message": "no"}))
        if line.get("type") == "result":
            return "+".join(asked) or "not asked"
    return "+".join(asked) + " without a result"


def _reply(request: Mapping[str, Any], response: Mapping[str, Any]) -> bytes:
    body = {"subtype": "success", "request_id": request["request_id"], "response": response}
    return json.dumps({"type": "control_response", "response": body}).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main())
