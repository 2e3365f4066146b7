"""The settings, and what of the operator's environment reaches the CLI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from occ_app.config import child_processes, config
from occ_app.config.options import AGENT_OPTIONS, HUB_OPTIONS, Option, values
from occ_app.config.settings import HUB_SETTINGS, SETTINGS, Setting
from occ_app.errors import ConfigError

REACH_THE_MODEL = [
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_MODEL",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CONFIG_DIR",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_SKIP_BEDROCK_AUTH",
    "AWS_PROFILE",
    "AWS_REGION",
    "CLOUD_ML_REGION",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "PATH",
    "HOME",
    "LC_ALL",
]

STAY_BEHIND = [
    "BUN_OPTIONS",
    "NODE_OPTIONS",
    "LD_PRELOAD",
    "GIT_DIR",
    "CLAUDECODE",
    "CLAUDE_CODE_ENTRYPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "GITHUB_TOKEN",
    "OCC_API_KEY",
    "OCC_TOKEN",
    "OCC_HOME",
    "IS_SANDBOX",
    "BASH_ENV",
]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"OCC_HOME": str(tmp_path)}


@pytest.mark.parametrize("name", REACH_THE_MODEL)
def test_each_way_to_reach_the_model_passes_to_the_cli(environ: dict[str, str], name: str) -> None:
    assert config.load(environ | {name: "value"}).cli_environment[name] == "value"


@pytest.mark.parametrize("name", STAY_BEHIND)
def test_everything_else_stays_behind(environ: dict[str, str], name: str) -> None:
    assert name not in config.load(environ | {name: "https://value.example"}).cli_environment


def test_home_is_always_set_for_the_cli(environ: dict[str, str]) -> None:
    assert config.load(environ).cli_environment["HOME"]


def test_a_process_of_the_daemon_reads_the_settings_it_was_started_with(environ: dict[str, str]) -> None:
    """What the supervisor resolved wins over a config.toml that changes while it runs."""
    flags = {"workers": "7", "labels": "a,b", "remote_url": "https://hub.example/", "api_key": "secret-key"}
    resolved = config.load(environ | {"ANTHROPIC_API_KEY": "k"}, flags)
    (Path(environ["OCC_HOME"]) / "config.toml").write_text("workers = 2\n")
    assert config.load(child_processes.child_environment(resolved, secrets=True)) == resolved
    assert config.load(child_processes.child_environment(resolved, secrets=False)).api_key is None


def test_a_secret_can_be_in_a_file(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file\nsecond line\n")
    assert config.load(environ, {"api_key": f"@{tmp_path / 'key'}"}).api_key == "from-a-file"
    assert config.load(environ | {"OCC_API_KEY": f"@{tmp_path / 'key'}"}).api_key == "from-a-file"


def test_an_agent_listens_on_loopback_also_with_a_hub(environ: dict[str, str]) -> None:
    for remote in ({}, {"OCC_REMOTE_URL": "https://hub.example"}, {"OCC_REMOTE_URL": "http://10.0.0.1:7700"}):
        loaded = config.load(environ | remote)
        assert (loaded.bind_address, loaded.called_directly) == ("127.0.0.1", False)
    for chosen in ({"OCC_BIND_ADDRESS": "10.0.0.5"}, {"OCC_PUBLIC_URL": "https://box.example"}):
        assert config.load(environ | {"OCC_REMOTE_URL": "https://hub.example"} | chosen).called_directly


@pytest.mark.parametrize(
    "address", ["hub", "ftp://hub.example", "http://", "https://u:p@hub.example", "http://h:99999"]
)
def test_an_address_that_is_none_names_its_source(environ: dict[str, str], address: str) -> None:
    with pytest.raises(ConfigError, match="OCC_REMOTE_URL"):
        config.load(environ | {"OCC_REMOTE_URL": address})


def test_a_secret_is_never_shown_in_an_error_or_a_repr(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as raised:
        config.load(environ | {"OCC_API_KEY": "secret with spaces"})
    assert "secret" not in str(raised.value)
    shown = repr(config.load(environ | {"OCC_API_KEY": "very-hidden", "ANTHROPIC_API_KEY": "also-hidden"}))
    assert "hidden" not in shown


def test_a_time_limit_above_the_maximum_is_told(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="OCC_MAX_TIMEOUT_SECONDS"):
        config.load(environ | {"OCC_TIMEOUT_SECONDS": "100", "OCC_MAX_TIMEOUT_SECONDS": "50"})


def test_the_time_for_an_answer_is_set_for_each_surface_of_a_hub(environ: dict[str, str]) -> None:
    hub = environ | {"OCC_HUB_HOME": environ["OCC_HOME"]}
    assert config.load_hub(hub).default_approval_seconds is None  # as the machine says
    for number, surface in enumerate(("api", "pages", "slack"), 1):
        loaded = config.load_hub(hub | {f"OCC_HUB_{surface.upper()}_APPROVAL_SECONDS": str(number * 3600)})
        assert getattr(loaded, f"{surface}_approval_seconds") == number * 3600
        with pytest.raises(ConfigError):
            config.load_hub(hub | {f"OCC_HUB_{surface.upper()}_APPROVAL_SECONDS": "1900000"})


def test_config_toml_takes_lists_and_numbers(environ: dict[str, str]) -> None:
    text = 'workers = 3\nlabels = ["gpu", "eu"]\ntools = "Read,Bash"\ntimeout_seconds = 12.5\n'
    (Path(environ["OCC_HOME"]) / "config.toml").write_text(text)
    loaded = config.load(environ)
    assert (loaded.workers, loaded.labels, loaded.tools) == (3, ("gpu", "eu"), ("Read", "Bash"))
    assert loaded.timeout_seconds == 12.5


def test_a_web_process_reports_once_that_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, end = os.pipe()
    monkeypatch.setenv("OCC_READY_FD", str(end))
    child_processes.report_ready()
    child_processes.report_ready()  # without a supervisor, or again: nothing
    assert os.read(ready, 8) == b"1"
    assert os.read(ready, 8) == b""  # closed, and no child inherits its number
    assert "OCC_READY_FD" not in os.environ
    os.close(ready)


@pytest.mark.parametrize(
    ("options", "settings"), [(AGENT_OPTIONS, SETTINGS), (HUB_OPTIONS, HUB_SETTINGS)], ids=["agent", "hub"]
)
def test_each_option_of_a_start_is_a_setting_of_its_daemon(
    options: tuple[Option, ...], settings: tuple[Setting, ...]
) -> None:
    names = [option.setting for option in options]
    assert len(set(names)) == len(names)
    assert set(names) <= {setting.name for setting in settings}


def test_options_give_settings_as_variables_hold_them() -> None:
    options = tuple(option for option in AGENT_OPTIONS if option.setting in ("workers", "labels", "trust_workspaces"))
    absent = {"workers": None, "labels": (), "trust_workspaces": False}
    assert values(options, absent) == {"workers": None, "labels": None, "trust_workspaces": None}
    parsed = {"workers": "3", "labels": ("a", "b"), "trust_workspaces": True}
    assert values(options, parsed) == {"workers": "3", "labels": "a,b", "trust_workspaces": "true"}
