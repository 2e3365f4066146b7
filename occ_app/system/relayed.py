"""The header by which a hub marks the executions that it sends to an agent.

Any other execution of that agent is local.
"""

from __future__ import annotations

HEADER = "OCC-Relayed"
MARK = {HEADER: "1"}
