"""The floors of the libraries are above every release with a known hole that could matter here.

A list of our own, since the tests run offline: when an advisory comes out, its line goes in and the floor goes up.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

# Library, first release without the hole, the advisory.
DIRECT = [
    ("flask", "3.1.1", "CVE-2025-47278"),
    ("flask", "3.1.3", "GHSA-68rp-wp8r-4726"),
    ("gunicorn", "23.0.0", "CVE-2024-6827"),
    ("jinja2", "3.1.6", "CVE-2025-27516"),
    ("markdown-it-py", "2.2.0", "CVE-2023-26303"),
    ("marshmallow", "4.1.2", "CVE-2025-68480"),
    ("urllib3", "2.5.0", "CVE-2025-50181"),
    ("urllib3", "2.6.0", "CVE-2025-66471"),
    ("urllib3", "2.6.3", "CVE-2026-21441"),
    ("urllib3", "2.7.0", "CVE-2026-44432"),
]
# What those bring along; there is no floor of ours to raise, so what was installed is looked at.
INDIRECT = [
    ("werkzeug", "3.0.6", "CVE-2024-49767"),
    ("h11", "0.16.0", "CVE-2025-43859"),
]


def numbers(version: str) -> tuple[int, ...]:
    found = [int(part) for part in re.findall(r"\d+", version)[:3]]
    return tuple(found + [0] * (3 - len(found)))


def floors() -> dict[str, str]:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    found = (re.match(r"([\w-]+)>=([\d.]+)", dependency) for dependency in project["dependencies"])
    return {match.group(1): match.group(2) for match in found if match}


def test_every_dependency_has_a_floor() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert len(floors()) == len(project["dependencies"])


@pytest.mark.parametrize(("library", "mended", "advisory"), DIRECT)
def test_a_floor_is_above_known_holes(library: str, mended: str, advisory: str) -> None:
    assert numbers(floors()[library]) >= numbers(mended), advisory


@pytest.mark.parametrize(("library", "mended", "advisory"), INDIRECT)
def test_what_is_brought_along_is_above_known_holes(library: str, mended: str, advisory: str) -> None:
    try:
        installed = metadata.version(library)
    except metadata.PackageNotFoundError:
        return  # not even there
    assert numbers(installed) >= numbers(mended), advisory
