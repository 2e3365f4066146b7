"""Formats of pictures that a browser shows without running code in them.

They are recognised by the first bytes of a file.
"""

from __future__ import annotations

HEAD_BYTES = 12


def type_of(content: bytes) -> str | None:
    """Return the media type that the first HEAD_BYTES of a content show.

    None if they belong to no such picture.
    """
    head = content[:HEAD_BYTES]
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return "image/avif" if head[4:12] in (b"ftypavif", b"ftypavis") else None
