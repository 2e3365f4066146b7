"""The effects of messages, commands and clicks.

Each may be handled twice after a kill, and takes effect once.
"""

from __future__ import annotations

import logging

from occ_app.errors import OCCError
from occ_app.executions import queries as executions
from occ_app.hub import placement
from occ_app.slack import blocks, inbox, incoming, people, threads
from occ_app.slack.inbox import Payload
from occ_app.slack.incoming import Incoming
from occ_app.slack.people import Asked, Person
from occ_app.slack.threads import Thread
from occ_app.workspaces import workspace as workspaces
from occ_worker.slack import clicks, starting
from occ_worker.slack.hub import SlackHub
from occ_worker.slack.replies import LATE, VIEWER, TakesLong, passes, say

log = logging.getLogger("occ.slack")

_STOPS = ("stop", "cancel")
_HELP = (
    "Mention me with a task, or send it as a direct message, and I run it. Answers in the thread continue it, and"
    " `stop` cancels it. `/occ use NAME` chooses the workspace or project of this channel, only for you; `/occ` alone"
    " opens a form."
)
_SHARED = "I do not work in channels that are shared with other organizations."
_FOREIGN = "I work only for members of the Slack workspace that I am connected to."


def handle_all(hub: SlackHub, *, slow: bool = False) -> bool:
    """Handle the stored payloads, and return whether there were any.

    A payload that cannot be handled does not block others. Payloads that take long are deferred to a call with `slow`,
    which handles only those. Raises Unavailable and NoSpace; the remaining payloads are handled later.
    """
    found = inbox.unhandled(hub.db, slow=slow)
    for payload in found:
        problem = None
        try:
            handle(hub, payload)
        except TakesLong:
            inbox.defer(hub.db, payload.number)
            hub.later()
            continue
        except OCCError as error:
            if passes(error):
                raise
            problem = str(error)
            log.warning("payload %d cannot be handled: %s", payload.number, error)
        except Exception:
            problem = "internal error; see logs/slack.log"
            log.exception("internal error while handling payload %d", payload.number)
        inbox.handled(hub.db, payload.number, problem)
    return bool(found)


def handle(hub: SlackHub, payload: Payload) -> None:
    """Act on a payload."""
    found = incoming.parsed(payload.kind, payload.content, hub.tokens.bot_user)
    if found is None or not found.channel:
        return
    known = None if found.kind != "message" else threads.thread_of(hub.db, found.team, found.channel, found.thread)
    addressed = found.direct or found.mentions or (found.replies and known is not None)
    if found.kind == "message" and not addressed:
        return
    if found.shared:
        say(hub, payload, found, _SHARED)
    elif found.team != hub.tokens.team_id:
        say(hub, payload, found, _FOREIGN)
    else:
        person = people.find(hub.db, found.team, found.user)
        if person is None or (found.kind == "command" and found.text.split()[:1] == ["login"]):
            _offer_link(hub, payload, found)
        elif found.kind == "command":
            _command(hub, payload, found, person)
        elif found.kind == "message":
            _message(hub, payload, found, person, known)
        else:
            clicks.act(hub, payload, found, person)


def _offer_link(hub: SlackHub, payload: Payload, found: Incoming) -> None:
    address = hub.address()
    if address is None:
        say(hub, payload, found, "This hub has no address for you to log in at; ask its operator for --public-url.")
        return
    code = people.new_code(hub.db, Asked(found.team, found.user, found.user_name))
    text = (
        f"I do not know you yet. <{address}/slack/link#{code}|Log in at the hub> within {people.CODE_MINUTES} minutes"
        " and confirm that this is you; then send it again."
    )
    say(hub, payload, found, text)


def _command(hub: SlackHub, payload: Payload, found: Incoming, person: Person) -> None:
    verb, _, rest = found.text.partition(" ")
    if not verb:
        _open_form(hub, payload, found, person)
    elif verb == "use" and rest.strip():
        try:
            with hub.db.read() as connection:
                workspace_id = placement.resolve(hub.agents, connection, rest.strip())
            workspaces.get(hub.db, workspace_id, person.visible_to)
        except OCCError as error:
            say(hub, payload, found, blocks.escaped(str(error)))
            return
        people.use(hub.db, found.team, found.channel, person.owner_id, workspace_id)
        say(hub, payload, found, f"Your runs from this channel go to {blocks.escaped(rest.strip())} from now on.")
    elif verb == "logout":
        people.unlink(hub.db, found.team, found.user)
        say(hub, payload, found, "You are no longer linked to the hub.")
    else:
        place = people.place(hub.db, found.team, found.channel, person.owner_id)
        where = f" Your runs from here go to {blocks.escaped(place)}." if place else ""
        say(hub, payload, found, f"{_HELP}{where}")


def _open_form(hub: SlackHub, payload: Payload, found: Incoming, person: Person) -> None:
    """Open the form that starts a run."""
    view = None if person.viewer else starting.form(hub, found, person)
    if person.viewer:
        say(hub, payload, found, VIEWER)
    elif view is None:
        say(
            hub,
            payload,
            found,
            "You have no workspace yet: send me a zip with your message, or run `occ projects add` on a machine.",
        )
    elif not hub.open_dialog(found.trigger, view):
        say(hub, payload, found, LATE)


def _message(hub: SlackHub, payload: Payload, found: Incoming, person: Person, known: Thread | None) -> None:
    if person.viewer:
        say(hub, payload, found, VIEWER)
        return
    if known is not None and not person.admin and person.owner_id != known.owner_id:
        if found.mentions:
            say(hub, payload, found, "This conversation belongs to somebody else; start one of your own.")
        return
    if known is not None and found.text.strip().lower() in _STOPS:
        _stop(hub, found, person)
        return
    if not found.text and not found.files:
        say(hub, payload, found, _HELP)
        return
    try:
        starting.by_message(hub, payload, found, person, known)
    except OCCError as error:
        if passes(error):
            raise
        say(hub, payload, found, blocks.escaped(str(error)))


def _stop(hub: SlackHub, found: Incoming, person: Person) -> None:
    """Cancel the unfinished runs of a thread."""
    for execution_id in threads.runs_in(hub.db, found.channel, found.thread):
        if not executions.get(hub.db, execution_id, person.visible_to).over:
            clicks.cancel(hub, execution_id, person)
