"""The outcome of a run of the CLI, from its result or its exit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from occ_app.executions.records import Outcome, countable
from occ_app.executions.spent import Spent
from occ_app.system.timestamps import milliseconds
from occ_worker.execution import texts

_ADVICE = {
    "CLAUDE_AUTH": "log in with `claude` on the agent's machine, or set ANTHROPIC_API_KEY there.",
    "RATE_LIMITED": "try again when the limit has passed.",
    "API_UNAVAILABLE": "the model's API has trouble or cannot be reached; try again later.",
    "MAX_TURNS": "send the session's next prompt to go on, or raise maxTurns.",
    "MAX_BUDGET": "raise maxBudgetUsd to go on.",
    "SESSION_NOT_FOUND": "a session goes on only in the workspace where it began; leave sessionId out to start one.",
}

_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASS", "AUTH", "CREDENTIAL", "COOKIE", "HEADER")
_PASSWORD = re.compile(r"://[^/@\s:]*:([^/@\s]+)@")
_LEAST_CHARACTERS = 8  # of a secret: shorter ones would be found in ordinary words

# Of the final event, which is one line of at most texts.LINE_BYTES.
_USAGE_BYTES = 16 * 1024
_DENIALS_BYTES = 40 * 1024


def of_result(result: Mapping[str, Any], error: str) -> Outcome:
    """Return the outcome of the CLI's result line; `error` is an earlier line's."""
    figures = {
        "sessionId": texts.text_of(result.get("session_id")),
        "costUsd": _own_cost(result),
        "costExact": True,  # an earlier version of OCC sent the session's total and no such field
        "numTurns": _whole_number_of(result.get("num_turns")),
        "durationMs": _whole_number_of(result.get("duration_ms")),
    }
    usage = _usage(result.get("usage"))
    if is_deferred(result):
        message = "A hook of the operator's deferred a tool call, which OCC cannot resume; remove that hook."
        return Outcome.failure("CLAUDE_ERROR", message, **figures)
    if result.get("is_error") is False:
        data = {
            "exitCode": 0,
            "timestamp": milliseconds(),
            **figures,
            "usage": usage,
            "permissionDenials": _denials(result.get("permission_denials")),
        }
        return Outcome("succeeded", "complete", data, usage)
    code, message = _failure(result, error)
    failed = Outcome.failure(code, message, **figures)
    return Outcome(failed.state, failed.event, failed.data, usage)


def joined(results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a process's last result, with the turns, time and cost of all results."""
    *earlier, last = results
    if not earlier:
        return last
    sums = {
        name: sum(value for each in results if isinstance(value := each.get(name), (int, float)))
        for name in ("num_turns", "duration_ms")
    }
    costs = [each.get("model_usage_since_last_result") for each in results]
    models = {f"{index} {model}": used for index, cost in enumerate(costs) for model, used in (cost or {}).items()}
    return {**last, **sums, "model_usage_since_last_result": models}


def is_deferred(result: Mapping[str, Any]) -> bool:
    """Return whether a result ends a process only because a call was deferred.

    It looks like a success.
    """
    return "tool_deferred" in (result.get("terminal_reason"), result.get("stop_reason"))


def spent(result: Mapping[str, Any], counted: Spent) -> Spent:
    """Return the figures of a process that ended with this result.

    Seconds and turns are those `counted`.
    """
    return replace(
        counted,
        cost_usd=float(_own_cost(result) or 0),
        duration_ms=_whole_number_of(result.get("duration_ms")) or 0,
        usage=_usage(result.get("usage")) or {},
    )


def how(returncode: int) -> dict[str, Any]:
    """Return the exit code or the signal of a return code of `subprocess`.

    There a signal is negative.
    """
    return {"exitCode": returncode if returncode >= 0 else None, "signal": -returncode if returncode < 0 else None}


def without_result(returncode: int, killed: bool, stderr: str) -> Outcome:
    """Return the outcome of a CLI that exited without a result.

    `killed` when OCC had to end it after its last output.
    """
    if returncode == 0 or killed:
        return Outcome.failure(
            "OUTPUT_TRUNCATED",
            "Claude Code ended without a result, so its output may be incomplete.",
            exitCode=how(returncode)["exitCode"],
        )
    last_words = f" and said: {stderr}" if stderr else "."
    if "No conversation found" in stderr:
        return Outcome.failure("SESSION_NOT_FOUND", f"Claude Code said: {stderr}", **how(returncode))
    if returncode in (126, 127):  # a shell's codes for a program that it cannot start
        message = f"Claude Code cannot be started ({stderr or 'no reason given'}); install it again."
        return Outcome.failure("CLAUDE_NOT_FOUND", message, **how(returncode))
    ended = f"exit code {returncode}" if returncode > 0 else f"signal {-returncode}"
    return Outcome.failure("CLAUDE_EXIT", f"Claude Code ended with {ended}{last_words}", **how(returncode))


def redacted(stderr: bytes, environment: Mapping[str, str]) -> str:
    """Return its stderr as text, without the secrets of its environment."""
    text = stderr.decode(errors="replace").replace("\0", "\ufffd").strip()
    return _without_secrets(text, environment)


def redacted_value(value: Any, environment: Mapping[str, str]) -> Any:
    """Return a JSON value without the secrets of the environment.

    They are removed from texts and names.
    """
    if isinstance(value, str):
        return _without_secrets(value, environment)
    if isinstance(value, Mapping):
        return {
            _without_secrets(str(key), environment): redacted_value(item, environment) for key, item in value.items()
        }
    return [redacted_value(item, environment) for item in value] if isinstance(value, list) else value


def _without_secrets(text: str, environment: Mapping[str, str]) -> str:
    for secret in sorted(_secrets(environment), key=len, reverse=True):
        text = text.replace(secret, "[redacted]")
    return text


def _secrets(environment: Mapping[str, str]) -> set[str]:
    """Return the secret values of the environment.

    The words of each, and the passwords in addresses, are among them.
    """
    found = set[str]()
    for name, value in environment.items():
        if any(word in name.upper() for word in _SECRET_NAMES):
            found |= {value, *value.split()}
        found |= {match[1] for match in _PASSWORD.finditer(value)}
    return {secret for secret in found if len(secret) >= _LEAST_CHARACTERS}


def _failure(result: Mapping[str, Any], error: str) -> tuple[str, str]:
    """Return the wire's code and a sentence for an unsuccessful result.

    `subtype` says "success" even on API errors.
    """
    errors = result.get("errors")
    listed = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
    message = str(result.get("result") or listed or result.get("subtype"))
    code = _failure_code(result, error, message)
    advice = f" To go on: {_ADVICE[code]}" if code in _ADVICE else ""
    return code, f"Claude Code said: {texts.whole_characters(message)[:2000].rstrip('.')}.{advice}"


def _failure_code(result: Mapping[str, Any], error: str, message: str) -> str:
    status = result.get("api_error_status")
    subtype = result.get("subtype")
    if subtype == "error_max_turns":
        return "MAX_TURNS"
    if subtype == "error_max_budget_usd":
        return "MAX_BUDGET"
    if "No conversation found" in message or "is not a valid UUID" in message:
        return "SESSION_NOT_FOUND"
    if (
        status in (401, 403)
        or error in ("authentication_failed", "oauth_org_not_allowed")
        or "Not logged in" in message
    ):
        return "CLAUDE_AUTH"
    if status == 429 or error == "rate_limit":
        return "RATE_LIMITED"
    unreachable = "Unable to connect" in message or "Connection error" in message
    if (isinstance(status, int) and status >= 500) or error in ("server_error", "overloaded") or unreachable:
        return "API_UNAVAILABLE"
    return "CLAUDE_ERROR"


def _own_cost(result: Mapping[str, Any]) -> int | float | None:
    """Return the cost in US dollars of this run alone, None when the CLI reports none.

    From 2.1.330 on `total_cost_usd` is the total of the whole session, earlier runs included, and the usage since the
    last result is reported beside it by model. Older versions report only the total of the process.
    """
    by_model = result.get("model_usage_since_last_result")
    if not isinstance(by_model, dict):
        return _number_of(result.get("total_cost_usd"))
    costs = [_number_of(usage.get("costUSD")) if isinstance(usage, dict) else None for usage in by_model.values()]
    return _number_of(math.fsum(cost for cost in costs if cost is not None))


def _number_of(value: object) -> int | float | None:
    kept = countable(value)
    return kept if isinstance(kept, (int, float)) and not isinstance(kept, bool) and kept >= 0 else None


def _whole_number_of(value: object) -> int | None:
    number = _number_of(value)
    return None if number is None else int(number)


def _usage(value: object) -> Any:
    """Return the usage of a result for storing and sending.

    None when it is no object, or one too large or deep.
    """
    if not isinstance(value, dict):
        return None
    try:
        kept = countable(texts.storable(value))
        return kept if texts.json_size(kept) <= _USAGE_BYTES else None
    except (ValueError, RecursionError):
        return None


def _denials(value: object) -> list[Any]:
    """Return the denied tool calls of a result that fit into the final event.

    Long inputs are cut.
    """
    kept, room = list[Any](), _DENIALS_BYTES
    for denial in value if isinstance(value, list) else []:
        try:
            short = {name: texts.cut(item, 4096)[0] for name, item in countable(texts.storable(denial)).items()}
            room -= texts.json_size(short) + 1
        except (AttributeError, ValueError, RecursionError):
            continue
        if room < 0:
            break
        kept.append(short)
    return kept
