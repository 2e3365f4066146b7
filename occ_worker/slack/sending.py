"""The only sender: it posts and updates messages, one call at a time.

It stays within Slack's rate limits.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from slack_sdk.errors import SlackApiError

from occ_app.errors import OCCError
from occ_app.slack import blocks, outbox, pacing, threads
from occ_app.slack.outbox import Content, Message
from occ_app.system.timestamps import iso

log = logging.getLogger("occ.slack")

REVOKED = ("invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "no_permission")
_TOO_LONG = ("msg_too_long", "msg_blocks_too_long", "invalid_blocks", "invalid_blocks_format")
_DELETED = ("message_not_found", "cant_update_message", "edit_window_closed")
_FINAL = (
    *("channel_not_found", "is_archived", "not_in_channel", "thread_not_found", "user_not_in_channel", "missing_scope"),
    *("restricted_action", "cannot_reply_to_message", "messages_tab_disabled", "no_text", "user_not_found"),
)
_UNCERTAIN = ("fatal_error", "internal_error", "request_timeout", "service_unavailable")  # it may be posted
_ABSENT = ("channel_not_found", "not_in_channel", "user_not_in_channel")
_POST_SECONDS = 1.0  # between two posts to a channel
_UPDATES, _WINDOW_SECONDS = 50, 60.0  # Slack accepts so many updates within that time
_UPDATE_SECONDS = 1.2  # before an update of a run in progress, so that finished runs find room
_MOST_UPDATED = 1000
_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_REVOKED_SECONDS = 300.0
_HISTORY = 200
_USERS = ("U", "W")  # a direct message is posted to its reader's id


@dataclass
class Sender:
    """The sender of due messages.

    `web` is a client of Slack's Web API, `report` is called with the latest problem, or None. `url_of` returns the
    address of a message's run. `diff_of` returns the diff of a run by its number, and raises OCCError. `ended` are the
    numbers of messages whose runs are over; `clock` returns seconds.
    """

    db: Any
    web: Any
    url_of: Callable[[Message], str | None]
    report: Callable[[str | None], None]
    diff_of: Callable[[int], bytes]
    ended: Set[int] = frozenset()
    clock: Callable[[], float] = time.monotonic
    _free_at: float = 0.0  # on the clock, like the times below
    _posted: dict[str, float] = field(default_factory=dict)
    _updates: deque[float] = field(default_factory=deque)
    _updated: dict[int, float] = field(default_factory=dict)
    _failures: int = 0
    _problem: str | None = None

    def seconds_to_wait(self) -> float:
        """Return for how long Slack must not be called."""
        return max(0.0, self._free_at - self.clock())

    def next_due(self) -> Message | None:
        """Return the first due message that Slack accepts now."""
        now = self.clock()
        self._posted = {channel: at for channel, at in self._posted.items() if now - at < _POST_SECONDS}
        if len(self._updated) > _MOST_UPDATED:
            self._updated = {number: at for number, at in self._updated.items() if now - at < 10 * _WINDOW_SECONDS}
        while self._updates and now - self._updates[0] >= _WINDOW_SECONDS:
            self._updates.popleft()
        room = len(self._updates) < _UPDATES
        rested = not self._updates or now - self._updates[-1] >= _UPDATE_SECONDS
        pace = pacing.Pace(frozenset(self._posted), room, room and rested, self.ended, self._updated)
        return pacing.due(self.db, pace)

    def send_next(self) -> bool:
        """Send the first due message.

        Returns False when none is due, or Slack must not be called now.
        """
        if self.clock() < self._free_at:
            return False
        message = self.next_due()
        if message is None or message.content is None:
            return False
        try:
            self._send(message, message.content)
        except SlackApiError as error:
            self._refused(message, message.content, error)
        except OCCError as error:  # from a diff that is not available; a message replaces it
            outbox.shorten(self.db, message.number, blocks.sentence(blocks.escaped(f"There is no diff: {error}")))
        except Exception as error:  # any network error of slack_sdk or the standard library
            log.info("Slack cannot be reached: %s", error)
            self._again(message, f"Slack cannot be reached ({type(error).__name__})")
        else:
            self._failures = 0
            self._note(None)
        return True

    def _send(self, message: Message, content: Content) -> None:
        values = {"channel": message.channel, "text": content.text, "blocks": list(content.blocks)}
        if message.only_for is not None and message.kind != outbox.OPENING:
            thread = _thread(message)
            outbox.trying(self.db, message.number)
            if message.tries == 0:  # it cannot be looked for in Slack, and must not be sent twice
                self._posted[message.channel] = self.clock()
                self.web.chat_postEphemeral(**values, **thread, user=message.only_for)
            outbox.shown(self.db, message.number, None, message.wanted)
            return
        if message.kind == outbox.DIFF and not content.blocks:
            self._upload(message)
            return
        if message.ts is not None:
            self._updates.append(self.clock())
            self._updated[message.number] = self.clock()
            self.web.chat_update(**values, ts=message.ts)
            outbox.shown(self.db, message.number, message.ts, message.wanted)
            return
        if message.tries and message.channel.startswith(_USERS):  # as above: the channel's id is not known
            outbox.shown(self.db, message.number, None, message.wanted)
            return
        if message.tries and (ts := self._posted_before(message)) is not None:
            self._note_posted(message, ts, None)  # the next send updates it under that id
            return
        outbox.trying(self.db, message.number)
        thread = _thread(message)
        marked = {"event_type": "occ_message", "event_payload": {"id": message.message_id}}
        self._posted[message.channel] = self.clock()
        reply = self.web.chat_postMessage(**values, **thread, metadata=marked, unfurl_links=False, unfurl_media=False)
        self._note_posted(message, str(reply["ts"]), message.wanted)

    def _note_posted(self, message: Message, ts: str, content_hash: str | None) -> None:
        if message.kind == outbox.OPENING:
            threads.opened(self.db, message, ts)
        outbox.shown(self.db, message.number, ts, content_hash)

    def _upload(self, message: Message) -> None:
        """Post a diff as a file.

        A file cannot be looked for in Slack, so it is not posted again after a kill.
        """
        if message.tries == 0:
            diff = self.diff_of(message.execution or 0)
            outbox.trying(self.db, message.number)
            thread = _thread(message)
            self.web.files_upload_v2(
                channel=message.channel, **thread, content=diff, filename="changes.diff", title="Changes"
            )
        outbox.shown(self.db, message.number, None, message.wanted)

    def _posted_before(self, message: Message) -> str | None:
        """Return the ts of a message posted before this process was killed.

        Returns None when it was not posted.
        """
        query = {"channel": message.channel, "include_all_metadata": True, "limit": _HISTORY}
        cursor = ""
        while True:
            more = {"cursor": cursor} if cursor else {}
            if _thread(message):
                reply = self.web.conversations_replies(**query, **more, ts=message.thread)
            else:
                reply = self.web.conversations_history(**query, **more)
            for one in reply.get("messages") or ():
                payload = (one.get("metadata") or {}).get("event_payload") or {}
                if payload.get("id") == message.message_id:
                    return str(one["ts"])
            cursor = (reply.get("response_metadata") or {}).get("next_cursor") or ""
            if not cursor or not _thread(message):  # only the newest page of a history is read
                return None

    def _refused(self, message: Message, content: Content, error: SlackApiError) -> None:
        response = error.response
        code = str(response.get("error") or "") if response is not None else ""
        if code and code not in _UNCERTAIN:
            outbox.not_posted(self.db, message.number)
        if code in ("ratelimited", "rate_limited") or getattr(response, "status_code", 0) == 429:
            seconds = _retry_after(response)
            self._free_at = self.clock() + seconds
            self._note(f"Slack's rate limit requires a wait of {seconds:g} s")
        elif code in REVOKED:
            self._free_at = self.clock() + _REVOKED_SECONDS
            self._note(f"Slack refuses the token ({code}); `occ hub slack connect` stores a new one")
        elif code in _TOO_LONG and content != (shortened := blocks.short(content, self.url_of(message))):
            log.warning("a message is too long for Slack (%s) and is shortened", code)
            outbox.shorten(self.db, message.number, shortened)
        elif code in _DELETED and message.ts is not None:
            outbox.lost(self.db, message.number)
        elif code in _ABSENT and message.only_for and message.ts is None and self._moved(message):
            log.info("the app cannot post in channel %s; a message goes to its reader directly", message.channel)
        elif code in (*_FINAL, *_TOO_LONG, *_DELETED):
            log.warning("message %d is not sent: %s", message.number, code)
            outbox.give_up(self.db, message.number, f"Slack answered {code}")
        else:
            self._again(message, f"Slack answered {code or 'with an error'}")

    def _moved(self, message: Message) -> bool:
        """Move a message to its reader's direct messages.

        Returns False when Slack does not open them, or the message is there already.
        """
        try:
            channel = str(self.web.conversations_open(users=message.only_for)["channel"]["id"])
        except SlackApiError as error:
            log.info("direct messages cannot be opened: %s", error.response.get("error"))
            return False
        if channel == message.channel:
            return False
        threads.move(self.db, message, channel)
        return True

    def _again(self, message: Message, problem: str) -> None:
        """Retry a message after a pause, which grows until a call succeeds."""
        seconds = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        outbox.put_off(self.db, message.number, iso(datetime.now(UTC) + timedelta(seconds=seconds)), problem)
        self._note(problem)

    def _note(self, problem: str | None) -> None:
        if problem != self._problem:
            self._problem = problem
            self.report(problem)


def _thread(message: Message) -> dict[str, str]:
    """Return a message's thread as an argument of Slack's methods.

    Returns no argument for the first message of a thread.
    """
    return {} if message.kind == outbox.OPENING or not message.thread else {"thread_ts": message.thread}


def _retry_after(response: Any) -> float:
    """Return the seconds of a Retry-After header; 30 if it cannot be read."""
    headers = {name.lower(): value for name, value in (getattr(response, "headers", None) or {}).items()}
    value = headers.get("retry-after", "30")
    try:
        return min(max(float(value[0] if isinstance(value, list) else value), 0.0), 3600.0)
    except (ValueError, TypeError):
        return 30.0
