"""An upgrade in place: new files under a daemon that runs, another schema, rows with columns of another version."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import urllib3

from occ_app import __version__, errors
from occ_app.client.hub_client import HubClient
from occ_app.config.config import Config
from occ_app.database import schema
from occ_app.database.database import Database
from occ_app.executions import queries
from occ_app.home import daemon
from occ_app.system.process_identity import own_identity
from occ_app.workspaces import workspace as workspaces
from tests import sentences
from tests.conftest import Occ, control_process, processes_with, wait_until
from tests.hub_app import hub_app

ROOT = Path(__file__).parent.parent


@dataclass
class Installation:
    """A copy of the checkout whose files can be replaced, and a hub's home."""

    tree: Path
    folder: Path
    environment: dict[str, str]

    def occ(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "occ_app.cli", *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.occ("hub", "status", "--json").stdout))

    def log(self) -> str:
        return (self.folder / "hub" / "logs" / "daemon.log").read_text()

    def upgrade(self) -> None:
        """Put version 99.0.0 in, with a template that its predecessor cannot read."""
        package = self.tree / "occ_app" / "__init__.py"
        version = next(line for line in package.read_text().splitlines() if line.startswith("__version__"))
        package.write_text(package.read_text().replace(version, '__version__ = "99.0.0"'))
        for name in ("login.html", "home.html"):
            template = self.tree / "occ_app" / "hub" / "templates" / name
            template.write_text(template.read_text() + "{{ 'x' | a_filter_of_the_next_version }}")


def _unfinished(folder: str, names: list[str]) -> list[str]:
    """Compiled modules that a process is just writing; the others are copied, for compiling takes seconds."""
    return [name for name in names if folder.endswith("__pycache__") and not name.endswith(".pyc")]


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Installation]:
    """An installation with no daemon yet; afterwards its hub is stopped."""
    tree = tmp_path / "tree"
    for name in ("occ_app", "occ_worker", "migrations"):
        shutil.copytree(ROOT / name, tree / name, ignore=_unfinished)
    for name in ("Procfile", "Procfile.hub"):
        shutil.copy(ROOT / name, tree / name)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OCC_HUB_HOME": str(tmp_path / "hub")}
    made = Installation(tree, tmp_path, environment | {"PYTHONPATH": str(tree)})
    yield made

    def stopped() -> bool:
        """Stop it again until nothing is left: a daemon that was just restarting does not hear the first stop."""
        made.occ("hub", "stop")
        return not processes_with(f"OCC_HUB_HOME={tmp_path / 'hub'}\0".encode())

    wait_until(stopped, "the hub to stop", 30)


@pytest.fixture
def installed(copied: Installation) -> Installation:
    """An installation with a hub in the background."""
    assert copied.occ("hub", "start", "--port", "0").returncode == 0, copied.log()
    return copied


def test_a_daemon_whose_files_changed_serves_its_own_pages_until_a_part_ends_then_all_start_from_the_new_files(
    installed: Installation,
) -> None:
    before = installed.status()
    assert before["problems"] == []
    templates = installed.tree / "occ_app" / "hub" / "templates"
    kept = {name: (templates / name).read_text() for name in ("login.html", "home.html")}
    installed.upgrade()
    changed_files = installed.status()
    assert any(f"version {__version__}" in problem for problem in changed_files["problems"]), changed_files
    with urllib3.PoolManager(retries=False) as pool:
        assert pool.request("GET", before["url"] + "/login").status == 200
        assert pool.request("GET", before["url"] + "/static/hub.css").status == 200
    for name, content in kept.items():  # version 99 has the same pages after all
        (templates / name).write_text(content)
    control = control_process(before["pid"])
    parts = psutil.Process(before["pid"]).children()
    control.kill()

    def changed() -> dict[str, Any] | None:
        with contextlib.suppress(ValueError, KeyError):
            # The parts first: a status that one of them still answered says nothing of the next moment.
            if all(not part.is_running() for part in parts):
                status = installed.status()
                return status if status.get("uptime") is not None and status["problems"] == [] else None
        return None

    after = wait_until(changed, "all parts to be replaced and without a problem")
    assert after["url"] == before["url"]
    assert sentences.STARTED_AGAIN_FROM_THE_NEW_FILES in installed.log()
    daemon_json = json.loads((installed.folder / "hub" / "run" / "daemon.json").read_text())
    assert daemon_json["version"] == "99.0.0"


def test_a_foreground_daemon_keeps_its_code_until_a_part_ends_then_stops_as_a_whole_and_says_so(
    copied: Installation,
) -> None:
    """Its terminal or service manager starts it again, so it does not replace itself there."""
    command = [sys.executable, "-P", "-m", "occ_app.cli", "hub", "start", "--foreground", "--port", "0"]
    with (copied.folder / "terminal").open("w") as terminal:
        hub = subprocess.Popen(command, env=copied.environment, cwd=copied.folder, stderr=terminal, stdout=terminal)
    try:
        wait_until(
            lambda: sentences.THE_HUB_IS_RUNNING_AT in (copied.folder / "terminal").read_text(), "the hub to serve", 30
        )
        before = copied.status()
        copied.upgrade()
        assert any(f"version {__version__}" in problem for problem in copied.status()["problems"])
        with urllib3.PoolManager(retries=False) as pool:
            assert pool.request("GET", before["url"] + "/login").status == 200
        control = control_process(before["pid"])
        control.kill()
        assert hub.wait(60) == 1
    finally:
        hub.kill()
        hub.wait()
    assert sentences.THE_FILES_CHANGED in (copied.folder / "terminal").read_text()
    wait_until(lambda: not processes_with(f"OCC_HUB_HOME={copied.folder / 'hub'}\0".encode()), "nothing to be left")
    assert copied.occ("hub", "start", "--port", "0").returncode == 0  # from the new files


def test_files_that_cannot_be_loaded_leave_the_rest_of_the_daemon_running(installed: Installation) -> None:
    before = installed.status()
    broken = installed.tree / "occ_worker" / "hub.py"
    content = broken.read_text()
    broken.write_text("this is half a file (")
    control = control_process(before["pid"])
    control.kill()
    wait_until(lambda: not control.is_running(), "control to end")
    with urllib3.PoolManager(retries=False) as pool:
        assert pool.request("GET", before["url"] + "/login").status == 200
    broken.write_text(content)
    wait_until(lambda: sentences.STARTED_AGAIN_FROM_THE_NEW_FILES in installed.log(), "the rest to be replaced", 30)


def migrated(folder: Path) -> Path:
    (folder / "lock").touch()
    schema.ensure_schema(folder / "occ.db", folder / "lock")
    return folder / "occ.db"


@pytest.mark.parametrize("version", [schema.SCHEMA_VERSION - 1, schema.SCHEMA_VERSION + 1])
def test_a_part_never_migrates_and_refuses_another_schema(tmp_path: Path, version: int) -> None:
    path = migrated(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(errors.StartFailed):
        schema.check_schema(path, tmp_path / "lock")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == version


def test_rows_with_columns_of_a_newer_version_are_read(tmp_path: Path) -> None:
    path = migrated(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for table in ("executions", "workspaces", "agents", "keys", "webhooks", "deliveries", "workspace_jobs"):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN of_a_newer_version TEXT")
        connection.execute(
            "INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,"
            " updated_at) VALUES ('work', 'work', '', '/nowhere', 0, 0, '[]', '', '')"
        )
        connection.execute(
            "INSERT INTO executions (execution_id, workspace_id, state, request_hash, prompt, timeout_seconds,"
            " idle_timeout_seconds, created_at) VALUES ('one', 'work', 'running', '', 'hi', 1, 1, '')"
        )
    database = Database(path)
    assert workspaces.get(database, "work").workspace_id == "work"
    assert [x.execution_id for x in queries.running(database)] == ["one"]


def test_commands_on_a_newer_database_say_that_it_is_newer(occ: Occ) -> None:
    occ.start()
    occ.stop()
    with contextlib.closing(sqlite3.connect(occ.home / "occ.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("ALTER TABLE executions RENAME COLUMN waits_for TO waits_upon")
    for command in (
        ("jobs",),
        ("jobs", "show", "x"),
        ("jobs", "prune", "--older-than", "1d"),
        ("backup", "b.tgz"),
        ("start",),
    ):
        done = occ.command(*command, check=False)
        assert (done.returncode, "newer OCC" in done.stderr, sentences.FAULT_IN_OCC in done.stderr) == (1, True, False)


def test_a_daemon_of_a_newer_version_is_found(tmp_path: Path) -> None:
    config = Config(home=tmp_path)
    config.make_folders()
    own = psutil.Process()
    identity = own_identity()
    written = {"boot_id": identity.boot_id, "pid": own.pid, "start": identity.start, "host": "", "port": 1, "url": ""}
    (config.run / "daemon.json").write_text(json.dumps({**written, "of_a_newer_version": 1}))
    found = daemon.find(config)
    assert found is not None
    assert found.pid == own.pid


MAJOR, MINOR = (int(number) for number in re.findall(r"\d+", __version__)[:2])
OLDER = {"protocol": 1, "agentId": None, "name": "box", "version": f"{MAJOR}.{MINOR - 1}.9", "port": 1, "workers": 1}
NEWER = {**OLDER, "version": f"{MAJOR}.{MINOR + 1}.9", "ofANewerVersion": {"a": [1]}}


@pytest.mark.parametrize("said", [OLDER, NEWER], ids=["older", "newer"])
def test_a_hub_speaks_with_agents_one_minor_version_older_and_newer(tmp_path: Path, said: dict[str, Any]) -> None:
    with hub_app(tmp_path) as hub:
        made = hub.call("POST", "/api/agents/register", hub.key("machines", "agent"), json=said).json
        assert made is not None
        beat = {"seqNum": 1, "status": "healthy", "version": said["version"], "ofANewerVersion": 1}
        assert hub.call("POST", f"/api/agents/{made['agentId']}/heartbeat", made["token"], json=beat).status_code == 200
        assert said["version"] not in str((hub.call("GET", "/health").json or {})["problems"])


def test_a_hub_names_an_agent_that_is_further_away(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        body = {**OLDER, "version": f"{MAJOR}.{MINOR + 2}.0"}
        assert hub.call("POST", "/api/agents/register", hub.key("machines", "agent"), json=body).status_code == 201
        assert body["version"] in str((hub.call("GET", "/health").json or {})["problems"])


def test_an_agent_reads_the_replies_of_a_newer_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = {"agentId": "agent-1", "token": "t", "heartbeatIntervalSeconds": 30, "via": "link", "ofANewerVersion": [1]}
    client = HubClient("http://127.0.0.1:1")
    monkeypatch.setattr(client, "_call", lambda *_: reply)
    assert client.register("key", {}).agent_id == "agent-1"
    assert client.beat("agent-1", "t", {})
