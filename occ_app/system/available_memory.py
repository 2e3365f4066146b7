"""The memory that new processes can take without anything being swapped or ended."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Return the bytes of memory that are available to this process.

    These are the bytes of the machine, or of the control group if it has less.
    """
    with contextlib.suppress(OSError, ValueError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if found is not None:
            return min([1024 * int(found[1]), *_left_in_group()])
    return 0


def _left_in_group() -> list[int]:
    """Return the bytes left under the limit of the control group.

    Empty without a limit. Page cache counts as free.
    """
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("0::/")[2]
        folder = _GROUPS / own
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return []
        used = int((folder / "memory.current").read_text())
        cache = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
        return [max(0, int(limit) - used + (0 if cache is None else int(cache[1])))]
    except (OSError, ValueError):
        return []  # no control groups of version 2, or the root group, which has no limit
