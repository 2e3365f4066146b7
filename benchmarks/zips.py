"""The zips of the upload rows."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

_FILE_BYTES = 9_900_000  # an agent takes 100 MB by default


def large(folder: Path) -> Path:
    """Ten files of 9.9 MB that hardly compress, as a build's output or pictures do."""
    bytes_of = random.Random(1)  # noqa: S311 - the same ones each time
    path = folder / "large.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for number in range(10):
            zipped.writestr(f"assets/{number}.bin", bytes_of.randbytes(_FILE_BYTES))
    return path


def many(folder: Path) -> Path:
    """20,000 files of about 1 KB in 200 folders, as sources are."""
    path = folder / "many.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for number in range(20_000):
            text = f"# file {number}\n" + "".join(f"value_{line} = {number * line}\n" for line in range(50))
            zipped.writestr(f"src/package_{number // 100}/module_{number}.py", text)
    return path
