"""The setting of benchmarks with the real Claude Code CLI.

A stand-in for the model's API, and a scratch folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import model_api, real_cli


@dataclass(frozen=True)
class RealSetting:
    """The CLI, a folder that is removed at the end, and variables.

    By the variables the CLI reaches the stand-in.
    """

    runs: int
    claude: Path
    folder: Path
    reach: dict[str, str]


@contextmanager
def real_setting(name: str) -> Iterator[RealSetting]:
    """Read the command line of the benchmark `name`, and yield its setting.

    It has the option `--runs`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    claude = real_cli.install(real_cli.default_cache())
    with tempfile.TemporaryDirectory(prefix="occ-bench-") as scratch, model_api.serve() as model:
        reach = {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": model_api.FAKE_KEY}
        yield RealSetting(runs, claude, Path(scratch), reach)
