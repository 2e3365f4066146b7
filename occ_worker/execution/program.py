"""The CLI as one execution needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from occ_worker.execution.resumable import Resumable


@dataclass(frozen=True)
class Program:
    """The CLI for one execution.

    `path`, in `workspace`, with files that name its memory and its servers.
    """

    path: str
    workspace: Path
    trusted: bool
    memory: Path | None
    servers: Path | None
    resumable: Resumable
