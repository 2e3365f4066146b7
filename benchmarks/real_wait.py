"""`python -m benchmarks.real_wait [--runs N]`: the whole wait of a person, with the real Claude Code CLI.

`occ run` until its first text is on the terminal, beside `claude -p` alone, in turn; both ask a stand-in for the
model's API on loopback that answers at once, so what is measured is the CLI's own start and what OCC adds to it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.real_setting import real_setting
from benchmarks.report import table
from benchmarks.rows import Row
from benchmarks.targets import Occ

_TEXT = "Hello-from-the-model"
_PROMPT = 'Say hello. @reply{"turns": [{"text": "%s", "chunks": 1}]}' % _TEXT  # noqa: UP031 - braces of its own
_LIMIT_SECONDS = 60.0


def main() -> int:
    """Run it. Returns the exit code."""
    with real_setting("real_wait") as setting:
        folder, claude, reach, runs = setting.folder, setting.claude, setting.reach, setting.runs
        occ = Occ(folder / "home", claude, 1, reach)
        alone = {"PATH": os.environ["PATH"], "HOME": str(folder), "DISABLE_AUTOUPDATER": "1", **reach}
        alone["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1"
        samples: dict[str, list[float]] = {"claude": [], "occ": []}
        occ.start()
        try:
            for _ in range(runs + 1):
                samples["claude"].append(_first_text([str(claude), "-p", _PROMPT, *_STREAMING], alone, folder))
                samples["occ"].append(
                    _first_text(occ.argv("run", "--workspace", "lane-0", _PROMPT), occ.environment, folder)
                )
        finally:
            occ.stop()
    warm = {name: values[1:] for name, values in samples.items()}  # the first of each fills the disk's cache
    print(table([Row("called → first text on the terminal (beside: `claude -p`)", "ms", warm)]))
    return 0


_STREAMING = ("--output-format", "stream-json", "--verbose", "--include-partial-messages", "--setting-sources", "user")


def _first_text(argv: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
    """Milliseconds from the start of a command to the model's text in its output."""
    begun = time.monotonic()
    with subprocess.Popen(
        argv,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        seen, first = b"", 0.0
        while piece := os.read(process.stdout.fileno(), 65536):
            seen += piece
            if not first and _TEXT.encode() in seen:
                first = time.monotonic() - begun
        process.wait(_LIMIT_SECONDS)
    if not first:
        raise SystemExit(f"no text came from {argv[:3]}: {seen[-500:].decode(errors='replace')}")
    return 1000 * first


if __name__ == "__main__":
    sys.exit(main())
