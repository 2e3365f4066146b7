"""Whether the wall clock can be believed before something is deleted by its time.

A clock that is wrong for a minute would have retention delete everything. So the control process stores the wall clock
beside CLOCK_BOOTTIME once a minute. A wall clock that moved days more than the time that passed is not believed until
it is back, or until OCC has run with it for a week. Refusals, as of an expired key, follow the wall clock always.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from occ_app.database.database import Database
from occ_app.errors import OCCError
from occ_app.executions import queries
from occ_app.home.notes import note, noted
from occ_app.system.process_identity import boot_id

JUMP_DAYS = 2.0  # while the machine runs, its wall clock may be set by so much
OFF_DAYS = 14.0  # a machine may be off for so long, which its clocks cannot tell from a jump
BELIEVED_SECONDS = 7 * 86400.0  # of running, after which a clock that stays where it is counts as right
_DAY = 86400.0


@dataclass(frozen=True)
class Reading:
    """Both clocks at one moment, in seconds.

    The wall clock counts since 1970, the other since this boot.
    """

    wall: float
    since_boot: float
    boot: str

    @classmethod
    def now(cls) -> Reading:
        return cls(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot_id())


def beat(db: Database, reading: Reading) -> str | None:
    """Store a reading.

    Returns a sentence for `problems` while the wall clock is not trusted.
    """
    kept = _after(_last(db), reading)
    note(db, "clock", kept)
    return _sentence(kept["ahead"])


def problem(db: Database, reading: Reading | None = None) -> str | None:
    """Return the sentence that `beat` would return, and store nothing."""
    return _sentence(_after(_last(db), reading or Reading.now())["ahead"])


def require(db: Database) -> None:
    """Raise OCCError while the wall clock is not believed."""
    sentence = problem(db)
    if sentence is not None:
        raise OCCError(sentence)


def _last(db: Database) -> dict[str, Any]:
    """Return the last stored reading, or the newest time of an execution."""
    kept = noted(db, "clock")
    if kept:
        return kept
    newest = queries.newest_moment(db)
    wall = None if newest is None else datetime.fromisoformat(newest).replace(tzinfo=UTC).timestamp()
    return {"wall": wall, "since_boot": 0.0, "boot": "", "ahead": 0.0, "held": 0.0}


def _after(last: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """Return the note that follows `last`.

    `ahead` is the jump that is not trusted, `held` for how long OCC ran with it.
    """
    same_boot = last["boot"] == reading.boot
    passed = max(0.0, reading.since_boot - last["since_boot"]) if same_boot else reading.since_boot
    jump = 0.0 if last["wall"] is None else reading.wall - last["wall"] - passed
    limit = OFF_DAYS if not same_boot and jump > 0 and not last["ahead"] else JUMP_DAYS
    ahead = last["ahead"] + jump
    if abs(ahead) <= limit * _DAY:
        ahead = 0.0
    held = last["held"] + passed if ahead else 0.0
    if held > BELIEVED_SECONDS:
        ahead = held = 0.0
    return {"wall": reading.wall, "since_boot": reading.since_boot, "boot": reading.boot, "ahead": ahead, "held": held}


def _sentence(ahead: float) -> str | None:
    if not ahead:
        return None
    return (
        f"The clock of this machine jumped by {ahead / _DAY:+.0f} days. Nothing is deleted by its age until the clock"
        " is right again or OCC has run with it for 7 days; check the date."
    )
