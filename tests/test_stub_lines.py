"""The stubs of the CLI print lines of the newest real CLI, and a piece of text of any supported one needs no parser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.targets import ARGUMENTS, compile_stub
from occ_worker.execution import command, simulated_claude, translator
from tests import real_cli
from tests.conftest import FAKE_CLAUDE, steps
from tests.model_api import FAKE_KEY, ModelApi
from tests.test_real_cli import reply

TEXT = "Hello."
DELTA = b'"type":"text_delta"'


def printed(argv: Sequence[str | Path], prompt: str, folder: Path, environment: Mapping[str, str]) -> list[bytes]:
    """Return the lines that a CLI prints for a prompt, up to its result."""
    with subprocess.Popen(
        argv, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(command.prompt_line(prompt))
        process.stdin.flush()
        lines = list[bytes]()
        while not lines or json.loads(lines[-1])["type"] != "result":
            line = process.stdout.readline()
            assert line, "it ended without a result"
            lines.append(line.removesuffix(b"\n"))
        process.stdin.close()
    return lines


def real_environment(folder: Path, model: ModelApi) -> dict[str, str]:
    """Return an environment in which the real CLI asks the stand-in model."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "ANTHROPIC_API_KEY": FAKE_KEY}
    return environment | {"ANTHROPIC_BASE_URL": model.url, **command._FIXED_ENVIRONMENT}


def real_lines(claude: Path, folder: Path, model: ModelApi) -> list[bytes]:
    environment = real_environment(folder, model)
    return printed([claude, *ARGUMENTS], "Say it. " + reply({"text": TEXT, "chunks": 3}), folder, environment)


def masked(line: bytes) -> bytes:
    """Return a piece of text without its ids and its text."""
    return re.sub(rb'"(text|session_id|uuid|api_message_id)":"[^"]*"', rb'"\1":""', line)


def kind(line: Mapping[str, Any]) -> tuple[str, ...]:
    event = line.get("event") or {}
    return line["type"], line.get("subtype", ""), event.get("type", ""), event.get("delta", {}).get("type", "")


def outline(value: object) -> object:
    """Return the names and the kinds of values of an object; a dictionary by model, which has other names, as such."""
    if not isinstance(value, dict):
        return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)
    return {name: dict if name == "model_usage_since_last_result" else outline(item) for name, item in value.items()}


def part_of(found: object, whole: object) -> bool:
    if isinstance(found, dict) and isinstance(whole, dict):
        return all(name in whole and part_of(item, whole[name]) for name, item in found.items())
    return found == whole


@pytest.mark.real_cli
def test_no_piece_of_text_of_a_supported_cli_needs_the_parser(
    real_claude: Path, tmp_path: Path, model: ModelApi
) -> None:
    deltas = [line for line in real_lines(real_claude, tmp_path, model) if DELTA in line]
    assert len(deltas) == 3
    assert all(translator._TEXT_DELTA.fullmatch(line) for line in deltas), deltas[0]


@pytest.mark.real_cli
def test_the_stubs_print_the_lines_of_the_newest_cli(tmp_path: Path, model: ModelApi) -> None:
    real = real_lines(real_cli.require(real_cli.VERSION), tmp_path, model)
    outlines = {kind(line): outline(line) for line in map(json.loads, real)}
    (delta,) = {masked(line) for line in real if DELTA in line}
    stubs: dict[str, tuple[list[str | Path], str]] = {
        "tests": ([sys.executable, FAKE_CLAUDE], steps({"say": TEXT, "times": 2})),
        "demo": ([sys.executable, Path(simulated_claude.__file__)], "hello"),
        "benchmarks": ([compile_stub(tmp_path)], "n=2 rate=0 size=32"),
    }
    for name, (argv, prompt) in stubs.items():
        lines = printed(argv, prompt, tmp_path, {"PATH": "/usr/bin:/bin"})
        assert {masked(line) for line in lines if DELTA in line} == {delta}, name
        for line in map(json.loads, lines):
            assert part_of(outline(line), outlines[kind(line)]), (name, line)
