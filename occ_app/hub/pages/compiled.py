"""Compiled templates, stored beside the compiled modules.

Compiling them takes half of a hub's start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket

_PATTERN = f"%s.{sys.implementation.cache_tag}-jinja-{jinja2.__version__}"


class CompiledTemplates(jinja2.FileSystemBytecodeCache):
    """A cache of compiled templates in `folder`.

    A template is loaded from it while its source is unchanged. Nothing is stored when the folder is not writable.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(str(folder or Path(importlib.util.cache_from_source(__file__)).parent), _PATTERN)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Store a template, unless Python itself stores no compiled modules."""
        if not sys.dont_write_bytecode:
            with contextlib.suppress(OSError):
                super().dump_bytecode(bucket)
