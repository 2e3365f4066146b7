"""Compiled templates, stored beside the compiled modules: compiling them takes half of a hub's start."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket

_PATTERN = f"%s.{sys.implementation.cache_tag}-jinja-{jinja2.__version__}"


class CompiledTemplates(jinja2.FileSystemBytecodeCache):
    """Loads a template from `folder` when its source has not changed; where no file can be written, none is stored."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(str(folder or Path(importlib.util.cache_from_source(__file__)).parent), _PATTERN)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Store a template, as Python stores a module."""
        if not sys.dont_write_bytecode:
            with contextlib.suppress(OSError):
                super().dump_bytecode(bucket)
