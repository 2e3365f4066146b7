"""The interpreter that runs OCC: how OCC starts its own processes."""

from __future__ import annotations

import sys


def command(*arguments: str) -> list[str]:
    """Return the argv of a Python process with these arguments.

    With -P no module is loaded from the current folder, which may be an upload. With -X utf8 file names and files are
    UTF-8 in every locale.
    """
    return [sys.executable, "-P", "-X", "utf8", *arguments]
