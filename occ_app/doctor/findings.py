"""A finding of a check, and the runner that turns an error of a check into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from occ_app.errors import OCCError

OK, NOTE, WRONG = "ok", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    `state` is ok, note or wrong; `action` is the next step, empty when there is none. `cause` is the check that finds
    the same cause, if it finds something wrong.
    """

    check: str
    state: str
    finding: str
    action: str = ""
    cause: str = ""


def ok(check: str, finding: str) -> Finding:
    return Finding(check, OK, finding)


def note(check: str, finding: str, action: str = "") -> Finding:
    return Finding(check, NOTE, finding, action)


def wrong(check: str, finding: str, action: str, cause: str = "") -> Finding:
    return Finding(check, WRONG, finding, action, cause)


@dataclass(frozen=True)
class Check:
    """A check and its name."""

    name: str
    run: Callable[[], Iterable[Finding]]


def findings(checks: Iterable[Check]) -> list[Finding]:
    """Run all checks; one that cannot be made is a finding itself and stops no other.

    A finding is left out when the check of its cause found it.
    """
    found = list[Finding]()
    for check in checks:
        try:
            found += check.run()
        except (OCCError, OSError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
            found.append(wrong(check.name, f"This could not be checked: {place}{reason}", "Correct that, then retry."))
    causes = {finding.check for finding in found if finding.state == WRONG and not finding.cause}
    return [finding for finding in found if finding.cause not in causes]
