"""Shell completion offers the values that there are, and the manual page has every command."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.testing import CliRunner

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
        assert completed(agent, "run", "--agent", "b", OCC_HUB_HOME=str(hub.config.home)) == ["box"]


def test_without_a_home_commands_are_completed_and_values_are_none(occ: Occ) -> None:
    assert "service" in completed(occ, "se")
    assert completed(occ, "jobs", "show", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_reads_its_script(occ: Occ, shell: str) -> None:
    script = occ.command("completion", shell).stdout
    assert "_OCC_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, capture_output=True)


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
