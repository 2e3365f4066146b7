"""Fields that only a hub's bodies have."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from marshmallow import ValidationError, fields, validate

from occ_app.web.fields import ONE_LINE_PATTERN, check_one_line

# One line that reads in the order it is written: with a direction override a name would read as another name.
LINE_PATTERN = ONE_LINE_PATTERN.replace(r"\u2028\u2029", r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069")


def _check_direction(value: str) -> None:
    if not re.fullmatch(LINE_PATTERN, value):
        raise ValidationError("Must not have characters that change the direction of text.")


class Line(fields.String):
    """One line of text with `least` to `largest` characters."""

    def __init__(self, least: int, largest: int, **kwargs: Any) -> None:
        checks: list[Callable[[str], object]] = [validate.Length(least, largest), check_one_line, _check_direction]
        super().__init__(validate=checks, metadata={"pattern": LINE_PATTERN}, **kwargs)
