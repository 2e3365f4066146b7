"""OCC as a person gets it: a wheel in an empty environment, and the demonstration."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests import sentences
from tests.conftest import Occ, processes_with, wait_until

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `occ` of a wheel that was built from this checkout and installed into an empty environment."""
    folder = tmp_path_factory.mktemp("install")
    wheel = built_wheel(folder)
    venv.create(folder / "env", with_pip=True)
    pip = [str(folder / "env/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, timeout=300)
    return folder / "env/bin/occ"


def built_wheel(folder: Path) -> Path:
    """A wheel of this checkout, built in `folder`."""
    source = folder / "source"
    skipped = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "dist", "build", "results")
    shutil.copytree(ROOT, source, ignore=skipped)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(source)],  # an sdist, and a wheel of it
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def test_the_wheel_and_the_sdist_are_fit_for_an_index(installed: Path) -> None:
    files = sorted((installed.parents[2] / "dist").iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"] or [path.suffix for path in files] == [".gz", ".whl"]
    check = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not os.environ.get("TEST_ALL"), reason="pipx and uv are tried by `make test-all`")
@pytest.mark.parametrize("way", ["pipx", "uv"])
def test_other_ways_to_install_work_in_a_clean_environment(installed: Path, tmp_path: Path, way: str) -> None:
    (built,) = (installed.parents[2] / "dist").glob("*.whl")
    wheel = Path(shutil.copy(built, tmp_path))  # the later one is written beside it
    places = {name: str(tmp_path / name) for name in ("PIPX_HOME", "PIPX_BIN_DIR", "UV_TOOL_DIR", "UV_TOOL_BIN_DIR")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **places, "OCC_HOME": str(tmp_path / "home"), "PATH": path}
    command = ["pipx", "install"] if way == "pipx" else ["uv", "tool", "install"]
    subprocess.run([sys.executable, "-m", *command, wheel], env=environment, check=True, capture_output=True)
    program = tmp_path / ("PIPX_BIN_DIR" if way == "pipx" else "UV_TOOL_BIN_DIR") / "occ"
    done = subprocess.run(
        [program, "upgrade", "--dry-run"], env=environment, capture_output=True, text=True, check=True
    )
    assert f"with {way}" in done.stdout
    from tests.test_upgrade_command import later  # it imports this module

    subprocess.run(
        [program, "upgrade", later(wheel, "9.0.0", {})], env=environment, check=True, capture_output=True, timeout=300
    )
    listing = ["pipx", "list", "--short"] if way == "pipx" else ["uv", "tool", "list"]
    done = subprocess.run([sys.executable, "-m", *listing], env=environment, capture_output=True, text=True, check=True)
    assert "9.0.0" in done.stdout


def test_a_wheel_in_an_empty_environment_starts_serves_and_stops(installed: Path, occ: Occ, tmp_path: Path) -> None:
    def command(*arguments: str) -> str:
        done = subprocess.run(
            [installed, *arguments],
            env=occ.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    command("start")
    occ.attach()
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "a.txt").write_text("a")
    assert command("run", "hello", "--dir", "project") == "You said: hello\n"
    assert "succeeded" in command("jobs")
    assert "has stopped" in command("stop")


def test_the_wheel_puts_nothing_but_its_packages_into_site_packages(installed: Path) -> None:
    (site,) = (installed.parent.parent / "lib").glob("python3*/site-packages")
    assert (site / "occ_app" / "_migrations" / "migrations.py").exists()
    assert (site / "occ_app" / "Procfile").exists()
    assert (site / "occ_app" / "py.typed").exists()
    assert (site / "occ_worker" / "py.typed").exists()
    for name in (
        "static/hub.css",
        "static/hub.js",
        "static/talk.js",
        "static/icon.svg",
        "templates/home.html",
        "templates/run.html",
    ):
        assert (site / "occ_app" / "hub" / name).exists()
    assert not (site / "migrations").exists()
    assert not (site / "tests").exists()


@pytest.mark.parametrize("cli", ["none", "logged out"])
def test_the_demo_shows_an_answer_and_leaves_nothing_on_ctrl_c(occ: Occ, tmp_path: Path, cli: str) -> None:
    environment = occ.environment | {"TMPDIR": str(tmp_path)}
    environment["OCC_CLAUDE_BIN"] = "/no/such/claude" if cli == "none" else str(logged_out(tmp_path))
    demo = subprocess.Popen(
        [sys.executable, "-m", "occ_app.cli", "demo"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    shown = ""
    while "Ctrl-C stops" not in shown:
        line = demo.stdout.readline()
        assert line, shown
        shown += line
    assert ("not installed" if cli == "none" else sentences.NOT_LOGGED_IN) in shown
    assert sentences.THIS_IS_A_SIMULATED_ANSWER in shown
    assert "tally.py" in shown
    offered = [line.strip() for line in shown.partition("Go on with:\n")[2].splitlines() if line.startswith("  ")]
    assert [word for line in offered for word in ("run", "jobs", "curl") if word in line.split()] == [
        "run",
        "jobs",
        "curl",
    ]
    for line in offered:  # as somebody pastes them
        done = subprocess.run(
            line, shell=True, env=occ.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, (line, done)
    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate(timeout=20)
    assert demo.returncode == 0, rest
    assert "Traceback" not in rest
    assert not list(tmp_path.glob("occ-demo-*"))


def logged_out(folder: Path) -> Path:
    path = folder / "logged-out-claude"
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1.0.0 && exit 0\nexit 1\n')
    path.chmod(0o755)
    return path


def test_a_killed_demo_takes_its_agent_and_its_hub_with_it(occ: Occ, tmp_path: Path) -> None:
    environment = occ.environment | {"TMPDIR": str(tmp_path), "OCC_CLAUDE_BIN": "/no/such/claude"}
    demo = subprocess.Popen(
        [sys.executable, "-m", "occ_app.cli", "demo"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert demo.stdout is not None
    while "/pair#" not in (line := demo.stdout.readline()):
        assert line
    (home,) = tmp_path.glob("occ-demo-*/home")
    served = Occ(home, occ.environment)
    hubs = f"OCC_HUB_HOME={home.parent / 'hub'}\0".encode()
    assert served.processes()
    assert processes_with(hubs)
    os.kill(demo.pid, signal.SIGKILL)
    demo.communicate()
    wait_until(lambda: not served.processes() and not processes_with(hubs), "the agent and the hub to end")
    shutil.rmtree(home.parent)


def test_the_simulation_is_never_used_by_start(occ: Occ) -> None:
    occ.environment["OCC_CLAUDE_BIN"] = "/no/such/claude"
    occ.command("start")
    occ.attach()
    occ.workspace()
    assert occ.run("hello")[-1].data["code"] == "CLAUDE_NOT_FOUND"
