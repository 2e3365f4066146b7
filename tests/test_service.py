"""The service: its unit, what installation changes and removal undoes, and the protocol of systemd's notify socket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from occ_app.cli import service as command
from occ_app.cli import service_unit
from occ_app.cli import start as starting
from occ_app.cli.commands import occ as occ_command
from occ_app.config import config as configuration
from occ_app.config.config import Config
from occ_app.errors import NotRunning
from occ_app.home import daemon
from occ_app.service.persistence import persistence
from occ_app.service.systemd import Machine, user_name
from occ_app.service.unit import MARK, Service, crontab_line, unit_text, variables_text
from occ_app.system.process_identity import own_identity
from tests import sentences
from tests.conftest import Occ, wait_until

# Keeps which units are enabled and active as files, and refuses the verbs that a file refuse-VERB names.
SYSTEMCTL = """#!/bin/sh
cd "{state}" || exit 1
echo "$(basename "$0") $*" >> calls
[ "$1" = --user ] && shift
verb=$1; shift
[ -e "refuse-$verb" ] && {{ echo "Access denied" >&2; exit 1; }}
[ "$1" = --now ] && shift
case "$verb" in
  enable) touch "enabled-$1" ;;
  restart) touch "active-$1" ;;
  disable) rm -f "enabled-$1" "active-$1" ;;
  is-enabled) [ -e "enabled-$1" ] && echo enabled || echo disabled ;;
  is-active) [ -e "active-$1" ] && echo active || echo inactive ;;
  enable-linger) touch "linger/$1" ;;
  disable-linger) rm -f "linger/$1" ;;
esac
"""
SECRET = "sk-made-up"


class Stage:
    """A machine with systemd as far as its programs and folders go, and a user on it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state, self.user = folder / "state", folder / "user"
        (self.state / "linger").mkdir(parents=True)
        (folder / "bin").mkdir()
        self.user.mkdir()
        for name in ("systemctl", "loginctl"):
            program = folder / "bin" / name
            program.write_text(SYSTEMCTL.format(state=self.state))
            program.chmod(0o755)
        (folder / "booted").mkdir()
        self.machine = Machine(folder / "booted", self.state / "linger", folder / "system")
        monkeypatch.setattr(command, "MACHINE", self.machine)
        monkeypatch.setattr(service_unit, "MACHINE", self.machine)
        monkeypatch.setenv("PATH", f"{folder}/bin:relative:{os.environ['PATH']}")
        monkeypatch.setenv("HOME", str(self.user))
        monkeypatch.setenv("OCC_HOME", str(self.user / ".occ"))
        monkeypatch.setenv("OCC_HUB_HOME", str(self.user / ".occ-hub"))

    @property
    def unit(self) -> Path:
        return self.user / ".config" / "systemd" / "user" / "occ.service"

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(occ_command, ["service", *arguments], standalone_mode=False)

    def files(self) -> dict[str, str]:
        """All files of the user by name, without the folders that a daemon makes."""
        paths = (path for path in self.user.rglob("*") if not path.is_dir())
        return {str(path.relative_to(self.user)): path.read_text() for path in paths}

    def calls(self) -> str:
        return (self.state / "calls").read_text() if (self.state / "calls").exists() else ""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_an_installation_survives_logout_and_reboot_and_its_removal_leaves_nothing(stage: Stage) -> None:
    before = sorted(path.name for path in stage.user.iterdir())
    installed = stage.run("install")
    assert (installed.exception, installed.return_value) == (None, 0)
    assert installed.output.index("Changes:") < installed.output.index("runs.")
    assert (stage.state / "linger" / user_name()).exists()
    found = persistence(Config.program, stage.machine)
    assert (found.logout, found.reboot, found.action) == (True, True, "")
    assert stage.run("status").return_value == 0
    removed = stage.run("uninstall")
    assert (removed.exception, removed.return_value) == (None, 0)
    assert not (stage.state / "linger" / user_name()).exists()
    assert sorted(path.name for path in stage.user.iterdir()) == sorted({*before, ".occ", ".local"})
    assert stage.files() == {}
    assert stage.run("status").return_value == 1


def test_commands_name_the_service_where_one_is_installed(stage: Stage) -> None:
    """A daemon that `occ start` starts beside its service is gone with the logout."""
    start = f"`systemctl --user start {stage.unit.name}`"

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(occ_command, arguments)
        return result.output + str(result.exception or "")

    config = configuration.load()
    assert service_unit.warnings(config) == []
    assert "systemctl" not in said("status")
    stage.run("install")
    [warning] = service_unit.warnings(config)
    assert start in warning
    for arguments in (("status",), ("approvals",)):
        assert start in said(*arguments)
    assert "systemctl" not in said("hub", "status")  # which has no service
    other = replace(config, home=config.home / "other")
    assert service_unit.warnings(other) == []  # the service is of another home
    stage.run("uninstall")
    assert service_unit.warnings(config) == []


def test_a_start_beside_a_service_warns_and_a_stop_names_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"url": "http://127.0.0.1:7600", "logs": "logs", "fingerprint": None, "warnings": []}
    stage.run("install")
    monkeypatch.setattr(
        starting, "_spawn", lambda config, log, answer, _: os.write(answer, json.dumps(report).encode())
    )
    started = CliRunner().invoke(occ_command, ["start"])
    assert (started.exit_code, started.output.count("systemctl --user start occ.service")) == (0, 1)
    monkeypatch.setattr(daemon, "find", lambda _: object())
    monkeypatch.setattr(daemon, "stop", lambda *_: True)
    stopped = CliRunner().invoke(occ_command, ["stop"])
    assert (stopped.exit_code, stopped.output.count("systemctl --user start occ.service")) == (0, 1)


def test_completion_is_installed_on_request_and_removed(stage: Stage) -> None:
    path = stage.user / ".local" / "share" / "bash-completion" / "completions" / "occ"
    assert str(path) in stage.run("install", "--completion", "bash").output
    assert "_OCC_COMPLETE" in path.read_text()
    assert stage.run("uninstall").return_value == 0
    assert not path.exists()


def test_lingering_that_was_on_before_stays_on(stage: Stage) -> None:
    (stage.state / "linger" / user_name()).touch()
    stage.run("install")
    stage.run("install")  # again: it is replaced
    assert "enable-linger" not in stage.calls()
    stage.run("uninstall")
    assert (stage.state / "linger" / user_name()).exists()


def test_lingering_that_an_installation_turned_on_is_turned_off_after_a_second_one(stage: Stage) -> None:
    stage.run("install")
    stage.run("install")
    stage.run("uninstall")
    assert not (stage.state / "linger" / user_name()).exists()
    assert not (stage.user / ".config").exists()


def test_lingering_stays_on_for_as_long_as_a_service_needs_it(stage: Stage) -> None:
    stage.run("install")
    stage.run("install", "--hub")
    stage.run("uninstall")
    assert (stage.state / "linger" / user_name()).exists()
    assert stage.run("status", "--hub").return_value == 0
    stage.run("uninstall", "--hub")
    assert not (stage.state / "linger" / user_name()).exists()


def test_refused_lingering_is_said_with_the_one_command(stage: Stage) -> None:
    (stage.state / "refuse-enable-linger").touch()
    result = stage.run("install")
    assert result.return_value == 1
    assert f"{sentences.LET_SERVICES_RUN} {user_name()}" in result.output
    found = persistence(Config.program, stage.machine)
    assert (found.running, found.logout, found.reboot) == (True, False, False)


@pytest.mark.parametrize("verb", ["daemon-reload", "enable", "restart"])
def test_a_refusal_of_systemd_is_an_error(stage: Stage, verb: str) -> None:
    (stage.state / f"refuse-{verb}").touch()
    result = stage.run("install")
    assert "Access denied" in str(result.exception)
    (stage.state / f"refuse-{verb}").unlink()
    assert stage.run("uninstall").return_value == 0


def test_secrets_are_in_a_private_file_and_never_in_the_unit(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCC_API_KEY", SECRET)
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    monkeypatch.setenv("OCC_REMOTE_URL", "https://hub.example.com")
    result = stage.run("install")
    files = stage.files()
    assert SECRET not in result.output
    assert [name for name, content in files.items() if SECRET in content] == [".occ/service.env"]
    path = stage.user / ".occ" / "service.env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert 'OCC_REMOTE_URL="https://hub.example.com"' in path.read_text()
    assert stage.run("uninstall").return_value == 0
    assert not path.exists()


def test_a_file_of_variables_that_the_user_wrote_is_kept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    (stage.user / ".occ").mkdir()
    path = stage.user / ".occ" / "service.env"
    path.write_text("ANTHROPIC_API_KEY=mine\n")
    monkeypatch.setenv("OCC_WORKERS", "3")
    assert "add" in stage.run("install").output
    stage.run("uninstall")
    assert path.read_text() == "ANTHROPIC_API_KEY=mine\n"


def test_a_dry_run_changes_nothing(stage: Stage) -> None:
    result = stage.run("install", "--dry-run")
    assert "occ.service" in result.output
    assert stage.files() == {}
    assert "enable" not in stage.calls()


def test_a_daemon_that_the_service_did_not_start_is_not_taken_over(stage: Stage) -> None:
    config = Config(home=stage.user / ".occ")
    config.make_folders()
    identity = own_identity()
    daemon.write(config, daemon.Daemon(identity.boot_id, identity.pid, identity.start, "", 1, "http://127.0.0.1:1"))
    result = stage.run("install")
    assert sentences.STOP_AND_DRAIN in str(result.exception)
    assert not stage.unit.exists()


def test_a_unit_of_somebody_else_is_neither_replaced_nor_removed(stage: Stage) -> None:
    stage.unit.parent.mkdir(parents=True)
    stage.unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert stage.run("install").exception is not None
    assert stage.run("uninstall").exception is not None
    assert stage.unit.read_text() == "[Service]\nExecStart=/bin/true\n"


def test_a_service_of_the_system_stops_before_root(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    result = stage.run("install", "--system")
    assert result.return_value == 1
    commands = [line.strip() for line in result.output.splitlines() if line.strip().startswith("sudo ")]
    assert len(commands) == 3
    assert str(stage.machine.system_units / "occ.service") in commands[0]
    draft = stage.user / ".occ" / "occ.service"
    assert "User=12345" in draft.read_text()
    assert not stage.machine.system_units.exists()
    stage.machine.system_units.mkdir()
    shutil.copy(draft, stage.machine.system_units)
    result = stage.run("uninstall")
    assert result.return_value == 1
    assert "sudo rm" in result.output
    assert (stage.machine.system_units / "occ.service").exists()
    found = persistence(Config.program, stage.machine)
    assert found.action.startswith("`sudo systemctl enable")


def test_the_files_of_a_service_of_the_system_go_after_its_unit(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    stage.run("install", "--system", "--completion", "bash")
    stage.machine.system_units.mkdir()
    unit = stage.machine.system_units / "occ.service"
    shutil.copy(stage.user / ".occ" / "occ.service", unit)
    commands = [line.strip() for line in stage.run("uninstall").output.splitlines()[1:]]
    assert commands[-1].endswith("uninstall")
    assert (stage.user / ".occ" / "service.env").exists(), "the service may start again before root removed it"
    unit.unlink()
    assert stage.run("uninstall").return_value == 0
    assert stage.files() == {}
    assert isinstance(stage.run("uninstall").exception, NotRunning)


def test_an_installation_names_the_variables_that_it_drops(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCC_WORKERS", "3")
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    stage.run("install")
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert "drop ANTHROPIC_API_KEY" in stage.run("install", "--dry-run").output


def test_without_systemd_there_is_a_line_for_crontab(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MACHINE", Machine(stage.state / "none"))
    monkeypatch.setenv("OCC_HOME", str(stage.user / "my %home"))
    result = stage.run("install")
    assert result.return_value == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("@reboot ")]
    assert "OCC_HOME=" in line
    assert r"my \%home" in line
    assert stage.files() == {}


def test_the_line_for_crontab_starts_an_agent(occ: Occ) -> None:
    """cron gives a job almost no variables and runs it with /bin/sh."""
    variables = occ.home.parent / "service.env"
    variables.write_text(variables_text({"OCC_WORKERS": "3", "OCC_NAME": 'the "box" $HOME'}))
    service = Service("", [], "OCC_HOME", occ.home, occ.environment["PATH"], variables, None)
    start = [sys.executable, "-m", "occ_app.cli", "start"]
    job = crontab_line(service, start).removeprefix("@reboot ").replace(r"\%", "%")
    subprocess.run(["/bin/sh", "-c", job], env={"HOME": str(occ.home.parent)}, check=True, capture_output=True)
    occ.attach()
    assert occ.client.health()["workers"]["total"] == 3
    used = daemon.environment(Config(home=occ.home))
    assert used is not None
    assert used["OCC_NAME"] == 'the "box" $HOME'


def a_service(folder: Path, user: str | None) -> Service:
    return Service("OCC 100%", [sys.executable, "-m", "a $b"], "OCC_HOME", folder, "/usr/bin:/bin", folder / "v", user)


@pytest.mark.parametrize("user", [None, "root"])
def test_systemd_accepts_the_unit(tmp_path: Path, user: str | None) -> None:
    path = tmp_path / "occ.service"
    path.write_text(unit_text(a_service(tmp_path, user)))
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("THE UNIT IS NOT VERIFIED: there is no systemd-analyze")
    kind = "--user" if user is None else "--system"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run([verify, kind, "verify", path], capture_output=True, text=True, check=False, env=environment)
    if "Failed to initialize manager" in done.stderr:
        pytest.skip(f"THE UNIT IS NOT VERIFIED: {done.stderr.strip()}")
    assert (done.returncode, [line for line in done.stderr.splitlines() if "occ.service" in line]) == (0, [])


def test_the_unit_holds_what_a_daemon_needs(tmp_path: Path) -> None:
    text = unit_text(a_service(tmp_path, None))
    assert text.startswith(MARK)
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert settings["ExecStart"] == f'"{sys.executable}" "-m" "a $$b"'
    assert settings["Description"] == "OCC 100%%"
    assert float(settings["TimeoutStopSec"]) > daemon.STOP_SECONDS
    assert (settings["Type"], settings["KillMode"], settings["Restart"]) == ("notify", "mixed", "on-failure")
    assert settings["OOMPolicy"] == "continue"
    assert "network-online" not in text
    assert "User=" not in text
    assert "network-online" in unit_text(a_service(tmp_path, "ada"))


def test_a_value_with_a_line_break_is_refused() -> None:
    with pytest.raises(ValueError, match="A has"):
        variables_text({"A": "one\nTwo=3"})


def abstract(path: Path) -> str:
    return f"\0{path.name}"


@pytest.mark.parametrize("named", [str, abstract])
def test_the_manager_is_notified_and_the_logs_are_files(occ: Occ, tmp_path: Path, named: Callable[[Path], str]) -> None:
    address = named(tmp_path / f"notify-{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(60)
        environment = occ.environment | {"NOTIFY_SOCKET": address.replace("\0", "@")}
        start = [sys.executable, "-m", "occ_app.cli", "start", "--foreground"]
        agent = subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert manager.recv(1000).startswith(b"READY=1\nSTATUS=")
        status = json.loads(occ.command("status", "--json").stdout)
        assert status["pid"] == agent.pid
        agent.terminate()
        assert manager.recv(1000).startswith(b"STOPPING=1")
        assert agent.wait(60) == 0
        assert agent.stdout is not None
        agent.stdout.close()
    assert "serves at" in occ.command("logs", "daemon").stdout
    wait_until(lambda: not occ.processes(), "it to end")
