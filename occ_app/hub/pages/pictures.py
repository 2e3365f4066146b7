"""Pictures on a page, checked by their content.

Only formats are shown that a browser displays without running anything in them.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Iterator
from itertools import chain

from flask import Response

from occ_app import errors
from occ_app.api import files as files_api
from occ_app.client.event_checks import MAX_IMAGE_PARTS, RawEvent, checked
from occ_app.database.database import Database
from occ_app.executions import events
from occ_app.executions.records import Execution
from occ_app.system.picture_types import HEAD_BYTES, type_of

_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "avif": "image/avif",
}
_MAX_BYTES = 20_000_000
_EVENTS_PER_READ = 20


def is_picture(path: str) -> bool:
    """Return whether a file's name is that of a picture."""
    return path.rpartition(".")[2].lower() in _TYPES


def sent(content: Iterator[bytes], size: int | None, path: str) -> Response:
    """Return a response with a file of `size` bytes.

    A browser shows a picture of at most _MAX_BYTES and saves anything else.
    """
    head = b""
    while len(head) < HEAD_BYTES and (piece := next(content, b"")):
        head += piece
    kind = _TYPES[path.rpartition(".")[2].lower()] if is_picture(path) else None
    shown = kind is not None and kind == type_of(head) and (size is None or size <= _MAX_BYTES)
    response = Response(chain([head], content), content_type=kind if shown else "application/octet-stream")
    if size is not None:
        response.content_length = size
    return response if shown else files_api.as_attachment(response, path)


def of_result(db: Database, execution: Execution, seq: int) -> Response:
    """Send the picture of a tool's result.

    `seq` is the number of its first `image` event. Raises NotFound.
    """
    content = _decoded("".join(_parts(db, execution.number, seq)))
    kind = type_of(content)
    if kind is not None:
        return Response(content, content_type=kind)
    message = "There is no such picture; retention may have removed it, or its machine sent something else."
    raise errors.NotFound("FILE_NOT_FOUND", message, {"executionId": execution.execution_id})


def _parts(db: Database, number: int, seq: int) -> list[str]:
    """Return the parts of an image from the event `seq`; none if one is missing."""
    parts, image = list[str](), None
    for event in _image_events(db, number, seq):
        data = json.loads(event.data)
        image = image or (data["toolUseId"], data["image"])
        if image != (data["toolUseId"], data["image"]):
            continue
        if data["part"] != len(parts):
            return []
        parts.append(data["data"])
        if len(parts) == data["parts"]:
            return parts
    return []


def _image_events(db: Database, number: int, seq: int) -> Iterator[RawEvent]:
    """Yield the valid `image` events from the event `seq`, which must be the first.

    At most as many events are read as an image may have.
    """
    after = seq - 1
    while after < seq + MAX_IMAGE_PARTS and (batch := events.after(db, number, after, _EVENTS_PER_READ)):
        for event in batch:
            sound = checked(RawEvent(event.seq, event.name, event.data)) if event.name == "image" else None
            if event.seq == seq and sound is None:
                return
            if sound is not None:
                yield sound
        after = batch[-1].seq


def _decoded(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True) if text else b""
    except ValueError:
        return b""
