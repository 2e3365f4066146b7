"""`occ doctor`: each check finds its fault, says nothing is wrong where nothing is, and stops no other check."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from occ_app import __version__
from occ_app.claude import program
from occ_app.cli.doctor import _print, checks
from occ_app.client.agent_client import AgentClient
from occ_app.client.hub_client import Echo
from occ_app.config.config import Config, HubConfig
from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.doctor import findings, home, hub, programs, running
from occ_app.doctor.findings import NOTE, OK, WRONG, Check, Finding
from occ_app.errors import ConfigError
from occ_app.home import daemon, machine
from occ_app.home import state as home_state
from occ_app.home.health import health
from occ_app.home.notes import note
from occ_app.service.systemd import Machine
from occ_app.system.process_identity import ProcessIdentity, own_identity
from tests.conftest import FAKE_CLAUDE, Occ, stand_in, wait_until
from tests.databases import make_database
from tests.hub_app import hub_app
from tests.real_hub import Hub

MAJOR, MINOR = (int(number) for number in re.findall(r"\d+", __version__)[:2])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A home as a first start leaves it, and the stand-in CLI."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    config = Config(home=tmp_path / "home", claude_bin=str(stand_in(tmp_path)), cli_environment=variables)
    config.make_folders()
    make_database(config.database)
    return config


def states(found: Any) -> dict[str, str]:
    return {finding.check: finding.state for finding in found}


def report(occ: Occ, *arguments: str) -> dict[str, dict[str, str]]:
    """The findings by check; the exit code and the count agree with them."""
    done = occ.command("doctor", "--json", *arguments, check=False)
    reply = json.loads(done.stdout)
    wrong = [finding for finding in reply["checks"] if finding["state"] == WRONG]
    assert (done.returncode, reply["wrong"]) == (1 if wrong else 0, len(wrong))
    assert all(finding["action"] for finding in wrong)
    return {finding["check"]: finding for finding in reply["checks"]}


def test_a_running_agent_with_a_hub_passes_every_check(hub_with_box: Hub) -> None:
    """Its settings are those of the daemon, though this shell does not have them."""
    box = hub_with_box.agent("box")
    shell = replace(box, environment={key: box.environment[key] for key in ("PATH", "HOME", "LANG", "OCC_HOME")})
    found = dict[str, dict[str, str]]()

    def passes() -> bool:
        found.update(report(shell))  # a hub that is slow for a moment calls in vain
        return WRONG not in {finding["state"] for finding in found.values()}

    wait_until(passes, f"every check to pass: {found}", 60)
    passing = (
        "claude",
        "git",
        "disk",
        "inodes",
        "permissions",
        "database",
        "daemon",
        "hub",
        "pin",
        "clock",
        "versions",
    )
    for check in passing:
        assert found[check]["state"] == OK, found[check]
    assert "link" in found["echo"]["finding"]
    assert "not running" not in shell.command("doctor").stdout


def test_a_hub_is_checked_too(hub_with_box: Hub) -> None:
    done = hub_with_box.agent("box").command("doctor", "--hub", "--json", OCC_HUB_HOME=str(hub_with_box.home))
    found = {finding["check"]: finding["state"] for finding in json.loads(done.stdout)["checks"]}
    assert found["daemon"] == OK
    assert "claude" not in found


def test_a_machine_with_nothing_on_it(occ: Occ) -> None:
    del occ.environment["OCC_CLAUDE_BIN"]
    occ.environment |= {"PATH": "/nowhere", "OCC_WORKER": "3", "OCC_HTTP_PORT": "many"}
    occ.home.mkdir(mode=0o755)
    found = report(occ)
    assert [found[check]["state"] for check in ("settings", "claude", "git", "permissions")] == [WRONG] * 4
    assert [found[check]["state"] for check in ("database", "daemon", "reboot")] == [NOTE] * 3


def test_a_wrong_setting_hides_no_claude(occ: Occ) -> None:
    occ.environment |= {"OCC_HTTP_PORT": "many"}
    found = report(occ)
    assert [found[check]["state"] for check in ("settings", "claude")] == [WRONG, OK]


def test_a_login_that_is_missing(config: Config, tmp_path: Path) -> None:
    assert states(programs.claude(config)) == {"claude": OK, "login": OK}
    program = tmp_path / "logged-out"
    program.write_text(f'#!/bin/sh\n[ "$1" = auth ] && exit 1\nexec "{sys.executable}" "{FAKE_CLAUDE}" "$@"\n')
    program.chmod(0o755)
    assert states(programs.claude(replace(config, claude_bin=str(program)))) == {"claude": OK, "login": WRONG}


def test_a_sandbox_that_cannot_be_had(config: Config) -> None:
    assert states(programs.boxed(config)) == {"sandbox": OK}
    without = {**config.cli_environment, "PATH": "/nowhere"}
    assert states(programs.boxed(replace(config, sandbox="bwrap", cli_environment=without))) == {"sandbox": WRONG}


def test_a_disk_without_room_or_inodes(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(home.disk(config)) == {"disk": OK, "inodes": OK}
    actual = os.statvfs(config.home)
    fields = [*actual]
    fields[4], fields[7] = 1, 1  # f_bavail, f_favail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    assert states(home.disk(config)) == {"disk": WRONG, "inodes": WRONG}


@pytest.mark.parametrize("name", ["", "state.json", "machine.json"])
def test_files_that_others_can_read(config: Config, name: str) -> None:
    path = config.home / name
    path.touch(mode=0o600)
    assert states(home.permissions(config)) == {"permissions": OK}
    path.chmod(0o755 if path.is_dir() else 0o644)
    (found,) = home.permissions(config)
    assert (found.state, found.action) == (WRONG, f"chmod go= {path}")


def test_a_damaged_database(config: Config) -> None:
    assert states(home.database(config)) == {"schema": OK, "database": OK}
    with sqlite3.connect(config.database) as connection:
        connection.executescript("CREATE TABLE filler (value); INSERT INTO filler VALUES (zeroblob(300000));")
    connection.close()
    with config.database.open("r+b") as file:
        file.seek(-200_000, os.SEEK_END)
        file.write(os.urandom(150_000))
    assert states(home.database(config))["database"] == WRONG
    config.database.write_bytes(b"this is no database" * 100)
    assert states(home.database(config)) == {"database": WRONG}


@pytest.mark.parametrize(("by", "state"), [(-1, NOTE), (1, WRONG)])
def test_a_database_of_another_version(config: Config, by: int, state: str) -> None:
    with sqlite3.connect(config.database) as connection:
        connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + by}")
    connection.close()
    assert states(home.database(config))["schema"] == state


def certificate(config: Config, days: int) -> Config:
    path = config.home / "chain.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", str(days), "-subj", "/CN=box", "-keyout", str(path), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return replace(config, tls_cert=str(path), tls_key=str(path))


@pytest.mark.parametrize(("days", "state"), [(365, OK), (7, WRONG)])
def test_a_certificate_that_ends_soon(config: Config, days: int, state: str) -> None:
    assert states(home.tls(certificate(config, days))) == {"tls": state}


def test_what_a_killed_daemon_left(config: Config) -> None:
    assert states(home.stale(config)) == {"stale": OK}
    (config.run / "daemon.json").write_text("{}")
    (config.home / "queue.db.unreadable-20260101-000000").touch()
    assert states(home.stale(config)) == {"stale": NOTE}
    daemon.write_parts(config, [own_identity()])
    assert WRONG in {finding.state for finding in home.stale(config)}
    daemon.write_parts(config, [ProcessIdentity("another boot", 1, 1)])
    assert states(home.stale(config)) == {"stale": NOTE}


def test_a_hub_that_does_not_answer(config: Config, free_port: int) -> None:
    away = replace(config, remote_url=f"http://127.0.0.1:{free_port}", api_key="key")
    assert states(hub.hub(away)) == {"hub": WRONG}
    known = replace(home_state.ensure(away.state), agent_id="agent-1", remote_url=away.remote_url)
    home_state.save(away.state, known)
    assert states(hub.hub(away)) == {"hub": WRONG}
    away.state.unlink()
    without_key = replace(away, api_key=None)  # the next start refuses it
    assert states(hub.hub(without_key)) == {"hub": WRONG}


def echo(**fields: Any) -> Echo:
    now = datetime.now(UTC).isoformat()
    return replace(Echo("link", 3.0, None, None, __version__, now), **fields)


@pytest.mark.parametrize(("seconds", "state"), [(0, OK), (-100, NOTE), (-400, WRONG), (400, WRONG)])
def test_a_clock_that_differs_from_the_hub_s(seconds: int, state: str) -> None:
    now = datetime.now(UTC)
    reply = echo(time=(now + timedelta(seconds=seconds)).isoformat())
    assert hub._clock(reply, now, now).state == state


@pytest.mark.parametrize(
    ("version", "state"),
    [
        (f"{MAJOR}.{MINOR - 1}.9", OK),
        (f"{MAJOR}.{MINOR}.5", OK),
        (f"{MAJOR}.{MINOR + 1}.0", OK),
        (f"{MAJOR}.{MINOR + 2}.0", WRONG),
        (f"{MAJOR + 1}.{MINOR}.0", WRONG),
        ("x", OK),
    ],
)
def test_versions_of_both_sides(version: str, state: str) -> None:
    assert hub._versions(version).state == state


def test_an_echo_that_does_not_come_back(config: Config) -> None:
    assert hub._way_back(config, echo()).state == NOTE  # it does not run
    identity = own_identity()
    daemon.write(config, daemon.Daemon(identity.boot_id, identity.pid, identity.start, "", 1, "http://127.0.0.1:1"))
    mine = machine.begin_instance(config)
    assert hub._way_back(config, echo(instance=mine)).state == OK
    assert hub._way_back(config, echo(instance="another start")).state == WRONG
    assert hub._way_back(config, echo(via=None)).state == WRONG
    assert hub._way_back(config, echo(problem="no answer")).state == WRONG
    assert states(running.running(config)) == {"daemon": WRONG}


def test_the_hub_answers_an_echo_for_its_own_agent_alone(tmp_path: Path) -> None:
    with hub_app(tmp_path) as app:
        made = app.register(app.key("machines", "agent"), "box").json
        other = app.register(app.key("others", "agent"), "other").json
        assert made is not None
        assert other is not None
        address = f"/api/agents/{made['agentId']}/echo"
        reply = app.call("POST", address, made["token"], json={}).json
        assert reply is not None
        assert (reply["via"], reply["instance"]) == (None, None)
        assert reply["problem"]
        assert app.call("POST", address, other["token"], json={}).status_code == 401
        assert app.call("POST", address, json={}).status_code == 401


def test_a_check_that_fails_itself_stops_no_other() -> None:
    def fails() -> list[Finding]:
        raise PermissionError(13, "Permission denied", "/secret")

    def refuses() -> list[Finding]:
        raise ConfigError("It is wrong.")

    found = findings.findings([Check("a", fails), Check("b", refuses), Check("c", lambda: [findings.ok("c", "fine")])])
    assert states(found) == {"a": WRONG, "b": WRONG, "c": OK}
    assert "/secret" in found[0].finding


def served_problems(config: Config, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """The findings on the problems that a daemon with these settings and this home serves."""
    with contextlib.closing(Database(config.database)) as database:
        body = health(config, database)
    identity = own_identity()
    daemon.write(config, daemon.Daemon(identity.boot_id, identity.pid, identity.start, "", 1, "http://127.0.0.1:1"))
    monkeypatch.setattr(AgentClient, "health", lambda *_: body)
    return [finding for finding in running.running(config) if finding.check == "problem"]


def test_a_cause_is_one_line_though_the_daemon_names_it_too(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = replace(config, claude_bin="/no/claude", cli_environment={"PATH": "/nowhere"})
    monkeypatch.setattr("occ_app.home.certificate.expires_at", lambda _: datetime.now(UTC) - timedelta(days=1))
    broken = replace(certificate(alone, 1), remote_url="http://127.0.0.1:1", api_key="key")
    with contextlib.closing(Database(config.database)) as database:
        note(database, "claude", {"path": None, "version": None, "problem": program.missing(broken)})
        note(database, "heartbeat", {"consecutiveFailures": 3, "unreached": 3})
        note(database, "registration", {"registered": False, "problem": "It was refused."})
    problems = served_problems(broken, monkeypatch)
    assert sorted(finding.cause for finding in problems) == ["claude", "echo", "git", "hub", "hub", "tls"]
    causes = [findings.wrong(name, "it is broken", "mend it") for name in ("claude", "echo", "git", "hub", "tls")]
    assert findings.findings([Check("causes", lambda: causes), Check("problems", lambda: problems)]) == causes
    fine = [findings.ok(finding.check, "fine") for finding in causes]  # then the daemon has settings of its own
    assert findings.findings([Check("causes", lambda: fine), Check("problems", lambda: problems)]) == fine + problems


def test_findings_of_the_same_words_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    twice = [findings.note(name, "it may be gone", "do this") for name in ("logout", "reboot")]
    _print([findings.ok("git", "fine"), *twice], 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["ok", "git"], ["note", "logout,"], ["->", "do"]]


def test_an_agent_and_a_hub_have_the_checks_that_they_need(tmp_path: Path) -> None:
    of_agent = [check.name for check in checks(Config(home=tmp_path), Machine(booted=tmp_path / "none"))]
    of_hub = [check.name for check in checks(HubConfig(home=tmp_path), Machine(booted=tmp_path / "none"))]
    assert set(of_agent) - set(of_hub) == {"claude", "sandbox", "git", "hub"}
    assert of_hub == [name for name in of_agent if name in of_hub]
