"""Writing files whole or not at all, and paths that are short enough for a socket."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from occ_app.errors import NotWritten


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `target` when the block ends without an error.

    Only its owner can read it. Raises NotWritten when `target` exists already or cannot be written, and when the block
    could not read a file.
    """
    folder = target.absolute().parent
    try:
        if target.exists():
            raise FileExistsError  # before the work is done
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{target.name}.") as partial:
            yield partial
            partial.flush()
            os.link(partial.name, target)  # unlike a rename this never replaces a file
    except FileExistsError:
        raise NotWritten(f"{target} exists already; choose another file.") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        in_folder = error.filename is None or Path(error.filename).parent == folder
        if in_folder:
            raise NotWritten(f"{target} cannot be written ({reason}); choose another place.") from None
        raise NotWritten(f"{error.filename} cannot be read ({reason}); make it readable and try again.") from None


def write_file(path: Path, content: str) -> None:
    """Write a small file in one step: a reader sees the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content)
    os.replace(temporary, path)


@contextlib.contextmanager
def short_path(folder: Path) -> Iterator[str]:
    """Yield a path to `folder` that is short enough for a socket address.

    Such an address holds 107 bytes, however deep the home is.
    """
    descriptor = os.open(folder, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
