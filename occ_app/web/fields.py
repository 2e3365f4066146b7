"""The fields of bodies and queries on the wire, and the values they accept."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from functools import cache
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from occ_app.system.timestamps import iso

# As OpenAPI writes them. They are matched whole, since Python's $ also takes a newline at the end.
ID_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?$"
ID_PREFIX_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
UUID_PATTERN = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
CURSOR_PATTERN = r"^([0-9]{1,18})?$"
ONE_LINE_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$"
MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]{0,255}$"
MOMENT_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?$"
)

# A prompt may have a million characters, which is 50 ms for a loop in Python.
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@cache
def schema_of(kind: type[Schema]) -> Schema:
    """Return the one instance of a schema; making one is slower than using it."""
    return kind()


def check_id(value: str) -> None:
    if not re.fullmatch(ID_PATTERN, value):
        raise ValidationError(
            "Must be 1 to 128 letters, digits, dots, underscores or hyphens, begin with a letter or digit "
            "and not end with a dot."
        )


def check_id_prefix(value: str) -> None:
    if not re.fullmatch(ID_PREFIX_PATTERN, value):
        raise ValidationError("Must be the beginning of an id: 1 to 128 letters, digits, dots, underscores or hyphens.")


def check_text(value: str) -> None:
    if _SURROGATE.search(value):
        raise ValidationError("Must be Unicode text without lone surrogates.")


def check_one_line(value: str) -> None:
    check_text(value)
    if _CONTROL.search(value):
        raise ValidationError("Must be one line of text.")


def check_prompt(value: str) -> None:
    check_text(value)
    if not value.strip():
        raise ValidationError("Must not be empty.")


def check_model(value: str) -> None:
    if not re.fullmatch(MODEL_PATTERN, value):
        raise ValidationError("Must be the name of a model.")


def check_session(value: str) -> None:
    if not re.fullmatch(UUID_PATTERN, value):
        raise ValidationError("Must be a session's UUID, as an execution's sessionId tells it.")


class Id(fields.String):
    """The id of a workspace or an execution."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(validate=check_id, metadata={"pattern": ID_PATTERN}, **kwargs)


class Amount(fields.Float):
    """A JSON number above 0 and at most `limit`; true and "3" are none."""

    def __init__(self, limit: float, **kwargs: Any) -> None:
        super().__init__(validate=validate.Range(min=0, min_inclusive=False, max=limit), **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, (bool, str)):
            raise ValidationError("Must be a number.")
        return super()._deserialize(value, *args, **kwargs)


class Seconds(Amount):
    """A span of time in seconds."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(10_000_000, **kwargs)


class WholeNumber(fields.Integer):
    """A JSON number without a fraction; true and "3" are none."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(strict=True, **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, (bool, str)):
            raise ValidationError("Must be a whole number.")
        return super()._deserialize(value, *args, **kwargs)


class TrueOrFalse(fields.Boolean):
    """A JSON boolean; 0, 1 and "yes" are none."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise ValidationError("Must be true or false.")
        return super()._deserialize(value, *args, **kwargs)


class Base64(fields.String):
    """Bytes in Base64."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(metadata={"format": "byte"}, **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            raise ValidationError("Must be Base64.") from None


class Moment(fields.String):
    """A day or a time in ISO 8601, read into the format of the rows.

    Without an offset it is UTC.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(metadata={"pattern": MOMENT_PATTERN}, **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        try:
            if not re.fullmatch(MOMENT_PATTERN, text):
                raise ValueError(text)
            moment = datetime.fromisoformat(text)
            moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValidationError("Must be a day or a time as 2026-01-31 or 2026-01-31T12:00:00Z.") from None
        return iso(moment)
