"""Follow the events of an execution over connections that may break."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import urllib3

from occ_app.client import sse
from occ_app.client.sse import StreamEvent
from occ_app.errors import Lost, Refused, Unreachable, Untrusted

_PATIENCE_SECONDS = 60.0  # how long a lost agent is looked for


def follow(
    execution_id: str, open_stream: Callable[[int], urllib3.BaseHTTPResponse], after: int
) -> Iterator[StreamEvent]:
    """Yield events to the final one, reopening the stream whenever it breaks.

    It continues after the last seen event. Raises Lost when the other side does not return after it had accepted the
    execution.
    """
    lost_since: float | None = None
    pause, accepted = 0.1, after > 0
    while True:
        try:
            stream = open_stream(after)
            accepted = True
            for batch in sse.batches(stream):
                lost_since, pause = None, 0.1
                for event in map(sse.parsed, batch):
                    after = max(after, event.seq)
                    yield event
                    if event.final:
                        return
        except Untrusted:
            raise
        except (Unreachable, Refused) as error:
            if isinstance(error, Refused) and not error.away:
                raise
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > _PATIENCE_SECONDS:
                raise _given_up(error, execution_id, accepted=accepted) from None
        time.sleep(pause)  # nothing can be waited for: the other side is away
        pause = min(pause * 2, 5.0)


def _given_up(error: Unreachable | Refused, execution_id: str, *, accepted: bool) -> Unreachable | Refused:
    """Return the error for a stream that was not resumed in time."""
    if not accepted:
        return error
    return Lost(f"{error} The run goes on there without this reader; its id is {execution_id}.")
