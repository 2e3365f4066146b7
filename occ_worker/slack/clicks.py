"""The effects of clicks on buttons and of submitted dialogs.

Each may be handled twice after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from occ_app.errors import Conflict, OCCError, RequestError, workspace_not_found
from occ_app.executions import lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.answers import Answer
from occ_app.executions.answers import Person as Decider
from occ_app.executions.records import Outcome
from occ_app.home import daemon
from occ_app.slack import blocks, dialogs, inbox, outbox, questions
from occ_app.slack.inbox import Payload
from occ_app.slack.incoming import Incoming
from occ_app.slack.people import Person
from occ_app.workspaces import workspace as workspaces
from occ_worker.slack import starting
from occ_worker.slack.hub import SlackHub
from occ_worker.slack.replies import LATE, VIEWER, TakesLong, passes, say

_CANCELLED = "The execution was cancelled before it started."
_OLD = "This button is from an earlier version. Decide on the page of the run."


def act(hub: SlackHub, payload: Payload, found: Incoming, person: Person) -> None:
    """Perform the action of a click or a dialog, if this person may.

    Raises TakesLong for an action that takes long in a payload that is not `slow`.
    """
    if person.viewer:
        say(hub, payload, found, VIEWER)
        return
    try:
        done = _DIALOGS.get(found.action) if found.kind == "dialog" else _click(found.action)
        if done is not None:
            done(hub, payload, found, person)
    except OCCError as error:
        if passes(error):
            raise
        say(hub, payload, found, blocks.escaped(str(error)))
    except (ValueError, KeyError, TypeError):
        say(hub, payload, found, _OLD)


def cancel(hub: SlackHub, execution_id: str, person: Person) -> None:
    """Cancel a run that this person may see. Raises NotFound."""
    lifecycle.cancel(hub.db, execution_id, "EXECUTION_CANCELLED", _CANCELLED, person.visible_to)
    hub.ring(execution_id)


def _drop(hub: SlackHub, _: Payload, found: Incoming, person: Person) -> None:
    """Drop a follow-up that has not started. Raises Conflict for one that has."""
    execution = executions.get(hub.db, found.value, person.visible_to)
    dropped = lifecycle.give_up(hub.db, execution.number, Outcome.failure("EXECUTION_CANCELLED", _CANCELLED))
    if not dropped and not executions.get(hub.db, found.value, person.visible_to).over:
        raise Conflict("EXECUTION_STARTED", "It has already started, so it was not dropped. Use Cancel to end it.")


def _post_diff(hub: SlackHub, payload: Payload, found: Incoming, person: Person) -> None:
    execution = executions.get(hub.db, found.value, person.visible_to)
    outbox.diff(hub.db, str(payload.number), found.channel, found.thread, execution.number)


def _list_files(hub: SlackHub, payload: Payload, found: Incoming, person: Person) -> None:
    execution = executions.get(hub.db, found.value, person.visible_to)
    if not payload.slow:
        raise TakesLong
    entries = hub.files().changes(execution)["entries"]
    content = blocks.files(entries, hub.page(execution.execution_id))
    outbox.notice(hub.db, str(payload.number), found.channel, found.thread, content)


def _undo(hub: SlackHub, payload: Payload, found: Incoming, person: Person) -> None:
    """Restore the files that a run changed; Slack has asked for a confirmation."""
    execution = executions.get(hub.db, found.value, person.visible_to)
    workspace = workspaces.numbered(hub.db, execution.workspace_generation, person.visible_to)
    if workspace is None:
        raise workspace_not_found(execution.workspace_id)
    if not daemon.takes_work(hub.config):
        raise RequestError("STOPPING", "The hub is stopping; try again in a minute.")
    if not payload.slow:
        raise TakesLong
    if not inbox.begin(hub.db, payload.number):
        say(hub, payload, found, "The hub was restarted while undoing this run. Check its changes on the page.")
        return
    reply = hub.files().restore(workspace, execution.execution_id, "start", force=False)
    count = reply["files"]
    text = f"{person.owner} undid this run: {count} file{'' if count == 1 else 's'} restored."
    outbox.notice(hub.db, str(payload.number), found.channel, found.thread, blocks.sentence(blocks.escaped(text)))


def _ask_reason(hub: SlackHub, payload: Payload, found: Incoming, _: Person) -> None:
    if not hub.open_dialog(found.trigger, dialogs.reason(found.value, found.channel)):
        say(hub, payload, found, LATE)


def _ask_questions(hub: SlackHub, payload: Payload, found: Incoming, person: Person) -> None:
    """Open the dialog that answers questions.

    Its button is shown only in private channels.
    """
    asked = hub.approvals().get(found.value, person.visible_to)
    asking = questions.of(asked)
    if not asking:
        raise ValueError("these questions are answered on the page")
    if not hub.open_dialog(found.trigger, dialogs.questions(asked, asking, found.channel)):
        say(hub, payload, found, LATE)


def _deny(hub: SlackHub, _: Payload, found: Incoming, person: Person) -> None:
    hub.approvals().answer(found.value, Answer("deny", message="Denied in Slack."), _decider(person))


def _allow(hub: SlackHub, _: Payload, found: Incoming, person: Person) -> None:
    given = json.loads(found.value)
    remember = "workspace" if found.action == blocks.ALWAYS else None
    answer = Answer("allow", str(given["hash"]), answers=given.get("answers"), remember=remember)
    hub.approvals().answer(str(given["id"]), answer, _decider(person))


def _deny_with_reason(hub: SlackHub, _: Payload, found: Incoming, person: Person) -> None:
    message = "\n".join(found.fields.get(dialogs.REASON, ())) or "Denied in Slack."
    hub.approvals().answer(str(json.loads(found.value)["id"]), Answer("deny", message=message), _decider(person))


def _answer(hub: SlackHub, _: Payload, found: Incoming, person: Person) -> None:
    """Answer questions with the values of a dialog.

    The dialog's metadata has the hash of the input that it showed.
    """
    metadata = json.loads(found.value)
    asked = hub.approvals().get(str(metadata["id"]), person.visible_to)
    answers = questions.answers(questions.of(asked), found.fields)
    hub.approvals().answer(asked.approval_id, Answer("allow", str(metadata["hash"]), answers=answers), _decider(person))


def _start(hub: SlackHub, _: Payload, found: Incoming, person: Person) -> None:
    if json.loads(found.value)["user"] == found.user:
        starting.by_form(hub, found, person)


def _decider(person: Person) -> Decider:
    return Decider(person.owner, person.visible_to, "slack")


_Act = Callable[[SlackHub, Payload, Incoming, Person], None]
_DIALOGS: dict[str, _Act] = {
    dialogs.FORM: _start,
    dialogs.REASON: _deny_with_reason,
    dialogs.QUESTIONS: _answer,
}
_CLICKS: dict[str, _Act] = {
    blocks.CANCEL: lambda hub, _, found, person: cancel(hub, found.value, person),
    blocks.DROP: _drop,
    blocks.DIFF: _post_diff,
    blocks.FILES: _list_files,
    blocks.UNDO: _undo,
    blocks.REASON: _ask_reason,
    blocks.ANSWER: _ask_questions,
    blocks.DENY: _deny,
    blocks.ALWAYS: _allow,
}


def _click(action: str) -> _Act | None:
    """Return the action of a button; None for one that opens a page.

    The buttons of a question's options have numbered action ids.
    """
    return _allow if action.startswith(blocks.ALLOW) else _CLICKS.get(action)
