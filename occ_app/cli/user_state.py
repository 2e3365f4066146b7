"""Files that commands keep for this user.

Only the user can read them, and they are changed in one step.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from occ_app.config import homes
from occ_app.errors import ConfigError
from occ_app.system.kernel import sync_folder


def read(name: str) -> dict[str, Any]:
    """Return the content of a file of this user's state.

    Empty when there is none. Raises ConfigError.
    """
    try:
        path = homes.user_folder() / name
    except ConfigError:  # a user without a home has stored nothing
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise ConfigError(
                    f"{path} is open to other users. Replace the keys in it, then remove it and log in again."
                )
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); move it away.") from None
    return content


@contextlib.contextmanager
def changed(name: str) -> Iterator[dict[str, Any]]:
    """Yield the content of a file of this user's state, and store it after the block.

    Two commands never change a file at the same time. Raises ConfigError.
    """
    path = homes.user_folder() / name
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path.with_name(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = read(name)
        before = json.dumps(content)
        yield content
        if json.dumps(content) != before:
            _replace(path, content)
    finally:
        os.close(lock)


def _replace(path: Path, content: dict[str, Any]) -> None:
    import tempfile  # most commands only read

    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # for its owner alone
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written ({(error.strerror or str(error)).lower()}); set XDG_STATE_HOME to a folder of yours."
    )
