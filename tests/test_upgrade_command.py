"""`occ upgrade`: wheels of later versions beside a running daemon, a way back, and nothing accepted meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from occ_app.cli import upgrading
from occ_app.config.config import Config, HubConfig
from occ_app.database.schema import SCHEMA_VERSION
from occ_app.errors import ConfigError
from occ_app.home import daemon, state
from occ_app.supervisor import startup
from occ_app.system.process_identity import ProcessIdentity, own_identity
from occ_app.upgrade import daemons, installation
from tests import sentences
from tests.conftest import Occ, output, processes_with
from tests.hub_app import HubApp, hub_app
from tests.test_install import built_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory.mktemp("wheel"))


def later(wheel: Path, version: str, edits: Mapping[str, tuple[str, str]]) -> Path:
    """A wheel of another version, with an edit in some of its files."""
    edits = {**edits, "occ_app/__init__.py": ('__version__ = "', f'__version__ = "{version}"\n_FORMER = "')}
    made = wheel.with_name(f"online_claude_code-{version}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w") as target:
        former = next(name for name in source.namelist() if name.endswith("/METADATA")).split("/")[0]
        names = []
        for name in source.namelist():
            content = source.read(name).decode("utf-8", "surrogateescape")
            if name in edits:
                before, after = edits[name]
                assert before in content
                content = content.replace(before, after, 1)
            if name.endswith(".dist-info/METADATA"):
                content = content.replace(
                    f"Version: {former.split('-')[1].removesuffix('.dist')}", f"Version: {version}", 1
                )
            if not name.endswith(".dist-info/RECORD"):
                names.append(name.replace(former, f"online_claude_code-{version}.dist-info"))
                target.writestr(names[-1], content.encode("utf-8", "surrogateescape"))
        record = f"online_claude_code-{version}.dist-info/RECORD"
        target.writestr(record, "".join(f"{name},,\n" for name in [*names, record]))
    return made


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Path:
    """An environment with OCC from a wheel; its libraries are those of the tests."""
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python3*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    install = [folder / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture
def old(occ: Occ, environment: Path) -> Iterator[tuple[Occ, Path]]:
    """An agent of that environment, with a run in it."""
    occ_program = environment / "bin/occ"
    occ.environment.pop("PYTHONPATH", None)
    command(occ, occ_program, "start", "--name", "a box")
    occ.attach()
    occ.workspace()
    occ.run("before", executionId="run-before")
    yield occ, occ_program
    command(occ, occ_program, "stop")
    assert not processes_with(f"OCC_HOME={occ.home}\0".encode())


def command(occ: Occ, program: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [program, *arguments], env=occ.environment, cwd="/", capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, (done.stdout, done.stderr, occ.logs())
    return done.stdout + done.stderr


def test_an_agent_is_upgraded_and_one_that_does_not_start_is_undone(old: tuple[Occ, Path], wheel: Path) -> None:
    agent, program = old
    one_more = {
        "occ_app/database/schema.py": (f"SCHEMA_VERSION = {SCHEMA_VERSION}", f"SCHEMA_VERSION = {SCHEMA_VERSION + 1}")
    }
    printed = command(agent, program, "upgrade", str(later(wheel, "98.0.0", {})))
    assert printed.index("Changes:") < printed.index("Stopping the agent")
    health = agent.client.health()  # at the same port, with the same token
    assert (health["version"], health["status"]) == ("98.0.0", "healthy"), health["problems"]
    assert output(agent.run("after")) == "You said: after"
    assert "98.0.0" in command(agent, program, "--version")
    used = daemon.environment(Config(home=agent.home))
    assert used is not None
    assert used["OCC_NAME"] == "a box"  # a flag of its start

    broken = {
        **one_more,
        "occ_app/wsgi.py": ("def main() -> None:\n", "def main() -> None:\n    raise SystemExit(9)\n"),
    }
    printed = command(agent, program, "upgrade", str(later(wheel, "99.0.0", broken)), code=1)
    assert sentences.THE_FORMER_VERSION_IS_BACK in printed
    health = agent.client.health()
    assert (health["version"], health["status"]) == ("98.0.0", "healthy"), health["problems"]
    assert agent.client.execution("run-before")["state"] == "succeeded"
    assert output(agent.run("again")) == "You said: again"
    printed = command(agent, program, "upgrade", "/no/such.whl", code=1)
    assert agent.client.health()["version"] == "98.0.0"
    assert not list(program.parent.parent.glob("lib/*/.occ-*"))


def test_a_dry_run_of_an_upgrade_changes_nothing(old: tuple[Occ, Path], wheel: Path) -> None:
    agent, program = old
    pid = json.loads(command(agent, program, "status", "--json"))["pid"]
    assert "Changes:" in command(agent, program, "upgrade", "--dry-run", str(wheel))
    assert json.loads(command(agent, program, "status", "--json"))["pid"] == pid


def test_an_agent_stops_before_its_hub_and_starts_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it takes leave, and the hub takes it back at once; otherwise the hub waits for the instance of before."""
    steps = list[tuple[str, str]]()
    running = daemon.Daemon("boot", 1, 1, "", 1, "http://127.0.0.1:1")
    configs = (HubConfig(home=tmp_path / "hub"), Config(home=tmp_path / "agent"))
    targets = [daemons.Target(config, running, {}, None) for config in configs]
    for name in ("stop", "start"):
        record = partial(lambda step, target: steps.append((step, target.name)), name)
        monkeypatch.setattr(daemons, name, record)
    for owner, name in ((daemons, "check"), (daemon, "hold"), (daemon, "let_go"), (installation, "run")):
        monkeypatch.setattr(owner, name, lambda *_: None)
    monkeypatch.setattr(upgrading, "_version", lambda: "9.0.0")
    existing = installation.Installation("venv", tmp_path, "x")
    assert upgrading.upgrade(existing, targets, "x", wait=False) == 0
    assert steps == [("stop", "the agent"), ("stop", "the hub"), ("start", "the hub"), ("start", "the agent")]


def test_a_checkout_is_upgraded_by_hand(occ: Occ) -> None:
    done = occ.command("upgrade", check=False)
    assert done.returncode == 2
    assert "git pull" in done.stderr


def test_pipx_upgrades_its_own_environment_and_its_record_can_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "pipx" / "venvs" / installation.DISTRIBUTION
    packages = prefix / "lib" / "site-packages"
    packages.mkdir(parents=True)
    for name in ("bin/occ", "links/pipx"):
        program = prefix / name
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    (prefix / "links" / "occ").symlink_to(prefix / "bin" / "occ")
    record = prefix / "pipx_metadata.json"
    record.write_text("before")
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setenv("PATH", str(prefix / "links"))
    existing = installation.Installation("pipx", packages, installation.DISTRIBUTION, record.read_bytes())
    pipx = str(prefix / "links" / "pipx")
    assert existing.command(installation.DISTRIBUTION) == [pipx, "upgrade", installation.DISTRIBUTION]
    assert existing.command("/a.whl") == [pipx, "install", "--force", "/a.whl"]
    assert existing.variables == {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(prefix / "links")}
    existing.keep()
    record.write_text("after")
    existing.restore()
    assert record.read_text() == "before"
    for other in (tmp_path / "no-pipx", tmp_path):  # without pipx, and with `pipx install --suffix`
        monkeypatch.setenv("PATH", str(other if other.name == "no-pipx" else prefix / "links"))
        monkeypatch.setattr(sys, "prefix", str(prefix if other.name == "no-pipx" else f"{prefix}-2"))
        assert existing.command("/a.whl")[1:4] == ["-m", "pip", "install"]


@pytest.mark.parametrize(("file", "kind"), [("pipx_metadata.json", "pipx"), ("uv-receipt.toml", "uv"), ("x", "venv")])
def test_the_way_of_an_installation_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, kind: str
) -> None:
    (tmp_path / file).touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(
        "importlib.metadata.distribution", lambda _: type("Found", (), {"read_text": lambda *_: None})()
    )
    assert installation.found().kind == kind
    assert installation.found().source == installation.DISTRIBUTION
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    with pytest.raises(ConfigError):
        installation.found()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubApp]:
    with hub_app(tmp_path) as hub:
        yield hub


def test_nothing_is_accepted_while_an_upgrade_may_go_back(hub: HubApp) -> None:
    body = {"name": "phone", "for": "client"}
    startup_of(hub.config, held=True)
    refused = hub.call("POST", "/keys", json=body)
    assert (refused.status_code, (refused.json or {})["code"]) == (503, "STOPPING")
    assert hub.call("GET", "/health").status_code == 200
    daemon.let_go(hub.config)
    assert hub.call("POST", "/keys", json=body).status_code == 201


def test_a_start_after_a_killed_upgrade_accepts_work(hub: HubApp) -> None:
    startup_of(hub.config, held=True)
    (hub.config.run / "upgrading").write_text(json.dumps({"boot_id": "another", "pid": 1, "start": 1}))
    startup_of(hub.config, held=False)
    assert daemon.takes_work(hub.config)
    assert not daemon.is_held(hub.config)


def startup_of(config: Config, *, held: bool) -> None:
    """Do what a start does before anything is served."""
    state.ensure(config.state)
    if held:
        daemon.hold(config)
        assert ProcessIdentity(**json.loads((config.run / "upgrading").read_text())) == own_identity()
    startup.clean(config, 0.0)
    assert daemon.takes_work(config) is not held
