"""What the exit of a CLI that gave no result means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from occ_app.records import Outcome


def how(returncode: int) -> dict[str, Any]:
    """The exit code or the signal of a return code as `subprocess` gives it: a signal is negative."""
    return {"exitCode": returncode if returncode >= 0 else None, "signal": -returncode if returncode < 0 else None}


def without_result(returncode: int, killed: bool, stderr: str) -> Outcome:
    """The outcome of a CLI that left without a result. `killed` when OCC had to end it after its last words."""
    if returncode == 0 or killed:
        return Outcome.failure(
            "OUTPUT_TRUNCATED",
            "Claude Code ended without a result, so its output may be incomplete.",
            exitCode=how(returncode)["exitCode"],
        )
    said = f" and said: {stderr}" if stderr else "."
    if "No conversation found" in stderr:
        return Outcome.failure("SESSION_NOT_FOUND", f"Claude Code said: {stderr}", **how(returncode))
    if returncode in (126, 127):  # what a shell ends with when it cannot start a program
        message = f"Claude Code cannot be started ({stderr or 'no reason given'}); install it again."
        return Outcome.failure("CLAUDE_NOT_FOUND", message, **how(returncode))
    ended = f"exit code {returncode}" if returncode > 0 else f"signal {-returncode}"
    return Outcome.failure("CLAUDE_EXIT", f"Claude Code ended with {ended}{said}", **how(returncode))


def redacted(stderr: bytes, environment: Mapping[str, str]) -> str:
    """What it printed on stderr as text, without the secrets that it was given in its environment."""
    text = stderr.decode(errors="replace").replace("\0", "\ufffd").strip()
    for name, value in environment.items():
        if len(value) >= 8 and any(word in name for word in ("KEY", "TOKEN", "SECRET", "PASS")):
            text = text.replace(value, "[redacted]")
    return text
