"""Images in the results of tools, as `image` events before the result.

An MCP server's screenshot is one. An image is sent in parts that each fit into a line. A picture that the tool Read
returns is a file of the machine already, and is left out, as are images of other formats than a browser shows safely.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from occ_app.system.picture_types import type_of
from occ_app.system.timestamps import milliseconds
from occ_worker.execution import texts

MAX_IMAGE_BYTES = 5_000_000  # the most that Claude takes
MAX_IMAGES = 8  # of one result
_PART_CHARACTERS = texts.LINE_BYTES - 4096  # of Base64, beside an id of the CLI
_FILE_TOOLS = ("Read", "NotebookRead")


class Images:
    """The images of one execution's tool results."""

    def __init__(self) -> None:
        self._file_calls = set[str]()

    def note_call(self, name: object, call: object) -> None:
        """Note a call whose images are files."""
        if name in _FILE_TOOLS and isinstance(call, str):
            self._file_calls.add(call)

    def events(self, block: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Return the events of the images of a `tool_result` block.

        Images that are too large and other content have none.
        """
        call, content = texts.text_of(block.get("tool_use_id")), block.get("content")
        if call is None or call in self._file_calls or not isinstance(content, list):
            return []
        found = [image for image in map(_image, content) if image is not None]
        return [event for number, image in enumerate(found[:MAX_IMAGES]) for event in _events(call, number, *image)]


def _image(part: object) -> tuple[str, str] | None:
    """Return type and Base64 of a part of a result, if it is an image to show."""
    source = part.get("source") if isinstance(part, dict) and part.get("type") == "image" else None
    data = source.get("data") if isinstance(source, dict) and source.get("type") == "base64" else None
    if not isinstance(data, str) or len(data) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        return None
    try:
        media_type = type_of(binascii.a2b_base64(data, strict_mode=True))
    except ValueError:
        return None
    return None if media_type is None else (media_type, data)


def _events(call: str, number: int, media_type: str, data: str) -> Iterator[tuple[str, dict[str, Any]]]:
    starts = range(0, len(data), _PART_CHARACTERS)
    for part, start in enumerate(starts):
        yield (
            "image",
            {
                "toolUseId": call,
                "image": number,
                "mediaType": media_type,
                "part": part,
                "parts": len(starts),
                "data": data[start : start + _PART_CHARACTERS],
                "timestamp": milliseconds(),
            },
        )
