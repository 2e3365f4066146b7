"""The app's replies to one person, and the errors that need none."""

from __future__ import annotations

from occ_app.errors import NoSpace, OCCError, Unavailable
from occ_app.slack import blocks, outbox
from occ_app.slack.inbox import Payload
from occ_app.slack.incoming import Incoming
from occ_worker.slack.hub import SlackHub

VIEWER = "Your key is a viewer's: it can read, but not start or decide anything."
LATE = "It is too late to open the dialog; try again."


class TakesLong(Exception):
    """A payload waits for a machine or a file, and must be handled in parallel."""


def say(hub: SlackHub, payload: Payload, found: Incoming, text: str) -> None:
    """Send text in mrkdwn to this person only."""
    only_for = None if found.direct else found.user
    outbox.notice(hub.db, str(payload.number), found.channel, found.thread, blocks.sentence(text), only_for)


def passes(error: OCCError) -> bool:
    """Return whether an error is temporary, so that the payload is handled later.

    It is that of a locked database or a full disk.
    """
    return isinstance(error, NoSpace) or (isinstance(error, Unavailable) and error.code == "BUSY")
