"""Pictures on a page: the formats that a browser shows without running anything of them, checked by their content."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from flask import Response

from occ_app.api import files as files_api

_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "avif": "image/avif",
}
_HEAD_BYTES = 12
_MAX_BYTES = 20_000_000


def is_picture(path: str) -> bool:
    """Whether the name of a file is that of a picture."""
    return path.rpartition(".")[2].lower() in _TYPES


def sent(content: Iterator[bytes], size: int | None, path: str) -> Response:
    """Send a file of `size` bytes: a picture to be shown, anything else to be saved."""
    head = b""
    while len(head) < _HEAD_BYTES and (piece := next(content, b"")):
        head += piece
    kind = _TYPES[path.rpartition(".")[2].lower()] if is_picture(path) else None
    shown = kind is not None and kind == _type_of(head) and (size is None or size <= _MAX_BYTES)
    response = Response(chain([head], content), content_type=kind if shown else "application/octet-stream")
    if size is not None:
        response.content_length = size
    return response if shown else files_api.as_attachment(response, path)


def _type_of(head: bytes) -> str | None:
    """Return the type that the first bytes of a file say; None if they are of no picture."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return "image/avif" if head[4:12] in (b"ftypavif", b"ftypavis") else None
