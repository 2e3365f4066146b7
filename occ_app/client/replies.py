"""Reading replies: their JSON, their error, or the reason why there was none."""

from __future__ import annotations

import json
import re
import time
from typing import Any, cast

import urllib3

from occ_app.errors import GATEWAY_STATUSES, Refused, Unreachable
from occ_app.system.foreign_text import storable, whole_characters

_PIECE = 1 << 16
_LARGEST = 1 << 20
_REFUSAL_SECONDS = 10.0
LARGEST_PATIENT = 64 << 20


def body(response: urllib3.BaseHTTPResponse, url: str, deadline: float, limit: int = _LARGEST) -> dict[str, Any]:
    """Return the JSON object of a reply, read until `deadline` and to `limit` bytes.

    The deadline is on the monotonic clock. Raises Unreachable when the reply is slower, larger or something else.
    """
    try:
        content = _content(response, deadline, limit)
        reply = json.loads(content or b"{}")
        if not isinstance(reply, dict):
            raise ValueError
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unreachable(f"{url} broke off its answer ({reason(error)}).") from None
    except (ValueError, RecursionError):
        raise Unreachable(f"{url} did not answer as OCC does; is the address right?") from None
    else:
        return cast(dict[str, Any], reply)
    finally:
        response.release_conn() if response.closed else response.close()


def _content(response: urllib3.BaseHTTPResponse, deadline: float, limit: int) -> bytes:
    content = b""
    while piece := cast(urllib3.HTTPResponse, response).read1(_PIECE):
        content += piece
        if len(content) > limit:
            raise ValueError("the answer is too large")
        if time.monotonic() > deadline:
            raise TimeoutError("it answers too slowly")
    return content


def refusal(response: urllib3.BaseHTTPResponse, who: str) -> Refused:
    """Return the message of an error reply.

    It is its sentence if it is OCC's, else its status.
    """
    after = response.headers.get("Retry-After", "")
    try:
        content = json.loads(_content(response, time.monotonic() + _REFUSAL_SECONDS, _LARGEST))
        message, code = whole_characters(str(content["message"]))[:1000], str(content["code"])
        if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", code):
            raise ValueError(code)
        details = storable(content["details"]) if isinstance(content.get("details"), dict) else {}
        if code == "INVALID_REQUEST" and isinstance(content.get("details"), dict) and content["details"]:
            message = _each(content["details"])
    except (urllib3.exceptions.HTTPError, OSError, ValueError, KeyError, TypeError, RecursionError):
        details = {}
        message, code = f"{who} answered {response.status}; check the address and the token.", ""
        if response.status in GATEWAY_STATUSES:
            message = f"{who} is away: a proxy in between answered {response.status}; try again in a moment."
    finally:
        response.close()
    seconds = float(after) if re.fullmatch("[0-9]{1,9}", after) else None
    return Refused(message, response.status, code, seconds, details)


def distrust(error: urllib3.exceptions.SSLError, url: str, option: str) -> str:
    """Return why nothing was sent to an address with TLS.

    `option` is the one that names a certificate to trust.
    """
    if "certificate has expired" in str(error):
        return f"The certificate of {url} has expired: renew it there. If it is new, set this machine's clock."
    if "certificate is not yet valid" in str(error):
        return f"The certificate of {url} is not valid yet: set the clocks of this machine and of that one."
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"{url} shows a certificate that is not trusted here; give the fingerprint it has with {option}."
    if "ingerprint" in str(error):
        return f"{url} shows another certificate than the pinned one: it was made again, or someone is in between."
    return f"{url} does not speak TLS; check whether it is an http:// address."


def _each(details: dict[str, Any]) -> str:
    """Return the errors of each field as one sentence.

    A person can use it without seeing the request.
    """
    lines = (f"{name}: {value[0] if isinstance(value, list) and value else value}" for name, value in details.items())
    return whole_characters(f"It was refused. {' '.join(lines)}")[:1000]


def reason(error: BaseException) -> str:
    cause: BaseException = error
    while isinstance(cause, urllib3.exceptions.MaxRetryError) and cause.reason:
        cause = cause.reason
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return "its name is not known"
    refused = isinstance(cause, urllib3.exceptions.NewConnectionError)  # which urllib3 derives from its timeouts
    if not refused and isinstance(cause, (urllib3.exceptions.TimeoutError, TimeoutError)):
        return "no answer in time"
    inner = cause.__cause__ or cause.__context__ or cause
    return (getattr(inner, "strerror", None) or type(inner).__name__).lower()
