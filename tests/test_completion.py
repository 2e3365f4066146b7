"""Shell completion offers the values that there are, and the manual page has every command."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from occ_app.cli import remotes
from occ_app.cli.commands import occ as occ_command
from tests.conftest import Occ
from tests.hub_app import hub_app
from tests.test_help import ALL


def completed(occ: Occ, *words: str, **environment: str) -> list[str]:
    """The values that a shell offers for the last word."""
    asked = {"_OCC_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(("occ", *words)), "COMP_CWORD": str(len(words))}
    return [line.partition(",")[2] for line in occ.command(**asked, **environment).stdout.splitlines() if line]


def test_ids_workspaces_and_machines_are_completed(agent: Occ) -> None:
    agent.run("hi", executionId="run-completed")
    for words in (("jobs", "show", "run-c"), ("diff", "run-c"), ("logs", "--execution", "run-c")):
        assert completed(agent, *words) == ["run-completed"], words
    assert completed(agent, "run", "--workspace", "wo") == ["work"]
    assert completed(agent, "workspaces", "fetch", "") == ["work"]
    with hub_app(agent.folder or agent.home.parent) as hub:
        hub.register(hub.key("machines", "agent"), "box")
        for words in (("run", "--agent", "b"), ("hub", "agents", "drain", "")):
            assert completed(agent, *words, OCC_HUB_HOME=str(hub.config.home)) == ["box"]
        assert completed(agent, "hub", "keys", "revoke", "m", OCC_HUB_HOME=str(hub.config.home)) == ["machines"]
    assert completed(agent, "jobs", "--url", "lo") == ["local", "local-hub"]
    assert completed(agent, "approve", "") == []


def test_without_a_home_commands_are_completed_and_values_are_none(occ: Occ) -> None:
    assert "service" in completed(occ, "se")
    assert completed(occ, "jobs", "show", "") == []


# A shell of each kind completes `occ remotes use b` twice, without a terminal. zsh loads the script as a function.
SHELLS = {
    "bash": """
        . {script}; COMP_WORDS=(occ remotes use b) COMP_CWORD=3
        for n in 1 2; do COMPREPLY=(); _occ_completion occ; echo "${{COMPREPLY[@]}}"; done
    """,
    "zsh": """
        fpath=({folder} $fpath); autoload -Uz _occ; compadd() {{ print -r -- $completions }}
        words=(occ remotes use b) CURRENT=4; _occ; _occ
    """,
    "fish": """
        . {script}
        for n in 1 2; complete -C "occ remotes use b"; end
    """,
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_more_than_once(
    occ: Occ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    script = tmp_path / "_occ"
    script.write_text(occ.command("completion", shell).stdout)
    assert "_OCC_COMPLETE" in script.read_text()
    if shutil.which(shell) is None:
        assert not os.environ.get("CI"), f"{shell} is missing"
        pytest.skip(f"{shell} is missing")
    monkeypatch.setenv("HOME", occ.environment["HOME"])
    remotes.save(remotes.Remote("box", "http://127.0.0.1:1", "agent", "a token"))
    lines = SHELLS[shell].format(script=shlex.quote(str(script)), folder=shlex.quote(str(tmp_path)))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    without_files = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [shell, *without_files, "-c", lines],
        env={**occ.environment, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.split(), done.stderr) == (["box", "box"], "")


def test_the_manual_page_has_every_command_and_is_roff() -> None:
    page = CliRunner().invoke(occ_command, ["man"]).output
    for name in ALL:
        if name != "occ":
            assert f".SS {name} ".replace("-", r"\-") in page
    assert not [line for line in page.splitlines() if line.startswith("'")]
    groff = shutil.which("groff") or shutil.which("mandoc")
    if groff is not None:
        done = subprocess.run([groff, "-man", "-Tutf8", "-ww"], input=page, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert "occ service install" in done.stdout
