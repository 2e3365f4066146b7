"""Files of this machine that go with a prompt."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from occ_app import errors
from occ_app.executions import attachments


def option(command: Any) -> Any:
    """Add the option --attach, whose value is the attachments of a request."""
    return click.option(
        "--attach",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        multiple=True,
        callback=lambda _context, _parameter, paths: read(paths),
        help="Image, PDF or text to send with the prompt; may be repeated. It is no file of the workspace.",
    )(command)


def read(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Return files as the attachments of a request.

    Raises UsageError for one that cannot be sent.
    """
    try:
        files = [(path.name, path.read_bytes()) for path in paths]
        if len(files) > attachments.MAX_FILES:
            raise click.UsageError(f"At most {attachments.MAX_FILES} files go with a prompt.")
        return [
            {"name": each.name, "data": base64.b64encode(each.data).decode()} for each in attachments.checked(files)
        ]
    except OSError as error:
        raise click.UsageError(f"{error.filename} cannot be read ({(error.strerror or '').lower()}).") from None
    except errors.RequestError as error:
        raise click.UsageError(str(error)) from None
