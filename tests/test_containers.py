"""The Containerfile and compose.yaml, held to the rules of hadolint that matter, without an engine to build them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from occ_app.cli.commands import occ as occ_command
from occ_app.home.daemon import STOP_SECONDS
from tests.test_help import ALL, children

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Containerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name."""
    lines = re.sub(r"\\\n", " ", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")))
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, lines.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found[rest.split(" AS ")[1]] = []
        found[list(found)[-1]].append((word, rest))
    return found


FINAL = {name: lines for name, lines in stages().items() if name != "wheels"}


def last(lines: list[tuple[str, str]], word: str) -> str:
    return [rest for each, rest in lines if each == word][-1]


def test_every_image_is_named_with_a_version() -> None:
    for image in re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE):
        assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim-\w+", image), image


def test_every_copied_file_exists() -> None:
    for line in re.findall(r"^COPY (.*)", TEXT, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert "ADD " not in TEXT


@pytest.mark.parametrize("name", FINAL)
def test_a_container_runs_as_a_user_without_rights(name: str) -> None:
    lines = FINAL[name]
    assert int(last(lines, "USER")) > 0
    words = [word for word, _ in lines]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert "sudo" not in TEXT


@pytest.mark.parametrize("name", FINAL)
def test_packages_are_pinned_and_their_lists_removed(name: str) -> None:
    for word, rest in FINAL[name]:
        if word == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest
            packages = rest.partition("--no-install-recommends ")[2].partition(" &&")[0].split()
            assert all("=" in package for package in packages), packages
        assert word != "SHELL", "it is ignored in the OCI format"
        assert word != "RUN" or " | " not in rest, "a failure before the last program of a pipe is not noticed"
        if word == "RUN" and "pip " in rest:
            assert "--no-cache-dir" in rest


@pytest.mark.parametrize("name", FINAL)
def test_no_secret_is_in_an_image(name: str) -> None:
    for word, rest in FINAL[name]:
        assert word not in ("ENV", "ARG") or not re.search("KEY|TOKEN|SECRET|PASSWORD", rest)
    for service in COMPOSE["services"].values():
        for variable, value in service["environment"].items():
            assert not re.search("KEY|TOKEN", variable) or value.startswith("${"), variable


def command_of(words: list[str]) -> str:
    """The `occ` command of an argv. Raises for one that does not exist, or an option that it does not have."""
    command: Any = occ_command
    name = "occ"
    words = words[1:] if words[0] == "occ" else words
    while words and hasattr(command, "commands") | hasattr(command, "list_commands") and words[0] in children(command):
        name = f"{name} {words[0]}"
        command = children(command)[words.pop(0)]
    import click

    command.make_parser(click.Context(command)).parse_args(words)
    return name


@pytest.mark.parametrize("name", FINAL)
def test_every_command_of_a_container_is_one_of_occ(name: str) -> None:
    lines = FINAL[name]
    group = "occ hub" if name == "hub" else "occ"
    assert json.loads(last(lines, "ENTRYPOINT")) == ["occ"]
    assert command_of(json.loads(last(lines, "CMD"))) == f"{group} start"
    health = last(lines, "HEALTHCHECK").partition(" CMD ")[2]
    assert command_of(json.loads(health)) == f"{group} status"
    assert command_of(COMPOSE["services"][name]["healthcheck"]["test"][1:]) == f"{group} status"
    assert f"{group} status" in ALL
    assert shlex.split(last(lines, "STOPSIGNAL")) == ["SIGTERM"]


@pytest.mark.parametrize("name", ["hub", "agent"])
def test_a_service_of_compose_is_stopped_gently_and_not_open_to_the_network(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["build"]["target"] in FINAL
    assert float(service["stop_grace_period"].removesuffix("s")) > STOP_SECONDS
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "no-new-privileges:true" in service["security_opt"]
    assert set(COMPOSE["volumes"]) >= {volume.split(":")[0] for volume in service["volumes"]}


def test_the_hub_of_compose_starts_before_there_is_a_key() -> None:
    """Compose reads all variables before each command, so a required one of the agent would stop the hub, too."""
    for service in COMPOSE["services"].values():
        for value in map(str, service["environment"].values()):
            assert not re.search(r"\$\{\w+:?\?", value), value
