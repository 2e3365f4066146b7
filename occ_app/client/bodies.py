"""Large bodies of requests and replies.

They have a lowest rate instead of one limit in time.
"""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, cast

import urllib3

from occ_app.client import replies
from occ_app.errors import Unreachable

_PIECE = 1 << 16
_BODY_SECONDS, _MIN_BYTES_PER_SECOND = 60.0, 16_384


def form(
    fields: Mapping[str, str], archive: IO[bytes], *, empty_allowed: bool
) -> tuple[Iterator[bytes], dict[str, str]]:
    """Return the body of a multipart form with a zip, and its headers.

    The zip is read from the position of `archive`. With `empty_allowed` the form of an empty archive has no file. The
    body raises TimeoutError when the other side reads it too slowly.
    """
    here = archive.tell()
    size = archive.seek(0, os.SEEK_END) - here
    archive.seek(here)
    boundary = uuid.uuid4().hex
    begin, end = _around_the_file(fields, boundary, empty=empty_allowed and size == 0)
    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(len(begin) + size + len(end)),
    }
    return timed(itertools.chain([begin], iter(lambda: archive.read(_PIECE), b""), [end])), headers


def receive(response: urllib3.BaseHTTPResponse, url: str, output: IO[bytes], limit: int | None) -> None:
    """Write the body of a reply to `output`, and close the reply.

    Raises Unreachable when it is over `limit` bytes, or slower than 60 s and the time of its size at a low rate.
    """
    deadline = time.monotonic() + _BODY_SECONDS
    written = 0
    try:
        while piece := cast(urllib3.HTTPResponse, response).read1(_PIECE):
            written += output.write(piece)
            if limit is not None and written > limit:
                raise Unreachable(f"{url} sent more than {limit} bytes.")
            if time.monotonic() > deadline + written / _MIN_BYTES_PER_SECOND:
                raise Unreachable(f"{url} sent its answer too slowly.")
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unreachable(f"{url} broke off its answer ({replies.reason(error)}).") from None
    finally:
        response.release_conn() if response.closed else response.close()


def timed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a body's pieces while the other side reads them fast enough.

    Raises TimeoutError.
    """
    deadline = time.monotonic() + _BODY_SECONDS
    for piece in pieces:
        if time.monotonic() > deadline:
            raise TimeoutError("the body is taken too slowly")
        yield piece
        deadline += len(piece) / _MIN_BYTES_PER_SECOND


def _around_the_file(fields: Mapping[str, str], boundary: str, *, empty: bool = False) -> tuple[bytes, bytes]:
    """Return the bytes before and after the file in a multipart form.

    There is no file when it is `empty`.
    """
    begin = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    if empty:
        return begin.encode(), f"--{boundary}--\r\n".encode()
    begin += f'--{boundary}\r\nContent-Disposition: form-data; name="zip"; filename="workspace.zip"\r\n'
    begin += "Content-Type: application/zip\r\n\r\n"
    return begin.encode(), f"\r\n--{boundary}--\r\n".encode()
