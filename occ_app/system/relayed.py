"""The header by which a hub marks the executions that it sends to an agent; any other execution there is local."""

from __future__ import annotations

HEADER = "OCC-Relayed"
MARK = {HEADER: "1"}
