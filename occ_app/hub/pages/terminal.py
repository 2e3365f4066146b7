"""Terminal output as a page shows it.

Progress lines have their last state, and no escape sequences remain except colours.
"""

from __future__ import annotations

import re
from itertools import pairwise

from markupsafe import Markup, escape

_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erasing
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # OSC: titles, links
    r"|\x1b[PX^_][^\x1b\n]*(?:\x1b\\)?"  # DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROL = re.compile("[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_COLOUR = re.compile(r"(?:\x1b\[|\x9b)([0-9;:]*)m")
_FIRST, _KEPT = 0xE200, 128  # private-use characters that mark colours while the rest is made plain
_MARK = re.compile(f"[{chr(_FIRST)}-{chr(_FIRST + _KEPT - 1)}]")
_BACKSPACE = re.compile(r"[^\x08\n]\x08")


def plain(text: str) -> str:
    """Return the text as a terminal would leave it, without colours.

    A carriage return without a line feed restarts its line.
    """
    if "\x1b" not in text and "\r" not in text and not _CONTROL.search(text) and "\x08" not in text:
        return text
    text = _ESCAPE.sub("", text).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(map(_last_state, text.split("\n"))) if "\n" in text else text.replace("\r", "\n")
    for _ in range(
        text.count("\x08") and 100
    ):  # each pass removes one of a run of backspaces; a longer run is not overstriking
        text, count = _BACKSPACE.subn("", text)
        if not count:
            break
    return _CONTROL.sub("", text.replace("\x08", ""))


def coloured(text: str) -> Markup:
    """Return the text as HTML with its colours as classes.

    The classes are `c1` to `c6`, `c8` for grey and `cb` for bold.
    """
    text = _MARK.sub("", text)
    text = plain(_COLOUR.sub(lambda found: chr(_FIRST + _style(found[1])), text))
    made, style = list[Markup](), 0
    places = [(found.start(), found.end(), ord(found[0]) - _FIRST) for found in _MARK.finditer(text)]
    for (_, begin, change), (end, _, _) in pairwise([(0, 0, 0), *places, (len(text), 0, 0)]):
        style = _after(style, change)
        piece = escape(text[begin:end])
        made.append(Markup('<span class="{}">{}</span>').format(_classes(style), piece) if style and piece else piece)
    return Markup("").join(made)


_BOLD, _KEEP, _THIN, _PLAIN = 16, 32, 64, 15  # bits of a style: bold; adds to the style before; not bold; no colour


def _style(parameters: str) -> int:
    """Return the style change of an escape sequence as a number below _KEPT.

    0 is a reset; the low four bits are a colour.
    """
    codes = [int(code or "0") if len(code) < 4 else 0 for code in re.split("[;:]", parameters)]
    colour, bold, reset = 0, 0, False
    while codes:
        code = codes.pop(0)
        if code in (38, 48):
            found, codes = _extended(codes)
            colour = found if code == 38 else colour
        elif code == 0:
            colour, bold, reset = 0, 0, True
        elif code in (1, 22):
            bold = _BOLD if code == 1 else _THIN
        elif 30 <= code <= 37 or 90 <= code <= 97:
            colour = (8 if code == 90 else code % 10) or _PLAIN
            colour = _PLAIN if colour == 7 else colour
        elif code == 39:
            colour = _PLAIN
    return colour | bold | (0 if reset else _KEEP)


def _extended(codes: list[int]) -> tuple[int, list[int]]:
    """Return the nearest basic colour to an extended one, and the codes after it.

    An extended colour is one of 256 or of 16 million.
    """
    if codes[:1] == [5] and len(codes) > 1:
        number = codes[1]
        if number < 16:
            return ((number % 8) or _PLAIN, codes[2:])
        level = (number - 16) % 216
        red, green, blue = level // 36 * 51, level // 6 % 6 * 51, level % 6 * 51
        return (_nearest(red, green, blue) if number < 232 else 8, codes[2:])
    if codes[:1] == [2] and len(codes) > 3:
        return _nearest(*codes[1:4]), codes[4:]
    return 0, []


def _nearest(red: int, green: int, blue: int) -> int:
    high = max(red, green, blue) * 2 // 3
    bits = (red > high) + 2 * (green > high) + 4 * (blue > high)
    return _PLAIN if bits in (0, 7) else bits


def _after(style: int, change: int) -> int:
    if not change & _KEEP:
        return change & (_BOLD | 15)
    colour = change & 15 or style & 15
    bold = 0 if change & _THIN else (change | style) & _BOLD
    return (0 if colour == _PLAIN else colour) | bold


def _classes(style: int) -> str:
    names = [f"c{style & 15}"] if style & 15 and style & 15 != _PLAIN else []
    return " ".join([*names, *(["cb"] if style & _BOLD else [])])


def _last_state(line: str) -> str:
    """Return the last text written on a line that was restarted repeatedly."""
    return next((state for state in reversed(line.split("\r")) if _MARK.sub("", state).strip()), "")
