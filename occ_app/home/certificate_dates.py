"""The expiry of a certificate, read from its DER.

Python's standard library has no function for it.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def first_certificate(pem: str) -> bytes:
    """Return the DER of the first certificate in a PEM text.

    Raises ValueError when there is none.
    """
    block = _BLOCK.search(pem)
    if block is None:
        raise ValueError("there is no certificate in it")
    return base64.b64decode(block[1])


def expires_at(der: bytes) -> datetime:
    """Return the end of a certificate's validity (RFC 5280, 4.1).

    Raises ValueError for anything that is no certificate.
    """
    certificate = _content(der, 0, _SEQUENCE)[0]
    fields = _content(certificate, 0, _SEQUENCE)[0]
    place = 0
    if fields[:1] == bytes([_VERSION]):
        place = _content(fields, 0, _VERSION)[1]
    for _ in ("serial number", "signature", "issuer"):
        place = _content(fields, place)[1]
    validity = _content(fields, place, _SEQUENCE)[0]
    end_place = _content(validity, 0)[1]
    end = _content(validity, end_place)[0].decode("ascii")
    kind = validity[end_place]
    if kind == _UTC_TIME:  # two digits of the year: 50 to 99 are of the last century
        end = ("19" if int(end[:2]) >= 50 else "20") + end
    elif kind != _GENERALIZED_TIME:
        raise ValueError("it has no date of expiry")
    return datetime.strptime(end, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _content(der: bytes, place: int, tag: int | None = None) -> tuple[bytes, int]:
    """Return the content of the value at `place`, and the place after it."""
    try:
        actual, length, begin = der[place], der[place + 1], place + 2
    except IndexError:
        raise ValueError("it is cut off") from None
    if tag is not None and actual != tag:
        raise ValueError("it is no certificate")
    if length & 0x80:
        count = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + count], "big"), begin + count
    if begin + length > len(der):
        raise ValueError("it is cut off")
    return der[begin : begin + length], begin + length
