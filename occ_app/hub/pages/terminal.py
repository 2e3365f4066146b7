"""Text for a terminal as a page shows it: without escape sequences, progress lines in their last state."""

from __future__ import annotations

import re

_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erasing
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # OSC: titles, links
    r"|\x1b[PX^_][^\x1b\n]*(?:\x1b\\)?"  # DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROL = re.compile("[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BACKSPACE = re.compile(r"[^\x08\n]\x08")


def plain(text: str) -> str:
    """The text as a terminal would leave it, without colours. A lone carriage return begins its line again."""
    if "\x1b" not in text and "\r" not in text and not _CONTROL.search(text) and "\x08" not in text:
        return text
    text = _ESCAPE.sub("", text).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(map(_last_state, text.split("\n"))) if "\n" in text else text.replace("\r", "\n")
    for _ in range(text.count("\x08") and 100):  # each pass removes one of a row; more are no overstriking
        text, count = _BACKSPACE.subn("", text)
        if not count:
            break
    return _CONTROL.sub("", text.replace("\x08", ""))


def _last_state(line: str) -> str:
    """The last that was written on a line which was begun again and again."""
    return next((state for state in reversed(line.split("\r")) if state.strip()), "")
