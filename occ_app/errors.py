"""The errors that a person or a program can act on.

OCCError
├── ConfigError            a flag, a variable or config.toml is wrong
├── AlreadyRunning         another daemon holds this home
├── NotRunning             there is no daemon in this home
├── StartFailed            the daemon could not start
├── SchemaTooNew           occ.db was written by a newer OCC
├── NotWritten             a command could not write the requested file
├── Unreachable            no answer from an agent or a hub
│   ├── Untrusted          the server shows a certificate that is not trusted
│   └── Lost               the stream of an execution broke; the execution continues
├── Refused                an agent or a hub answered with an error
└── RequestError           a request that cannot be served; carries the wire's `code` and `details`
    ├── InvalidRequest     well-formed, but not valid
    │   └── ArchiveError   a zip that is refused, with a ZIP_… code
    ├── Forbidden          the caller is known, but lacks the permission
    ├── NotFound           no such workspace, execution, agent or key
    ├── Conflict           it exists with another body, or is busy
    ├── TooLarge           over a size limit
    ├── QueueFull          the queue has reached its limit
    ├── Unavailable        stopping, too many streams, or busy: try again later
    └── NoSpace            the disk is full

Domain code raises these errors where the fact is known. `web/` translates them to HTTP responses, `cli/` to a sentence
and an exit code.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

# Statuses of a proxy or a content network that cannot reach the server; 520 to 530 are Cloudflare's.
GATEWAY_STATUSES = frozenset({429, 500, 502, 503, 504, *range(520, 528), 530})


class OCCError(Exception):
    """The base class; the text is a sentence that says what to do next."""


class ConfigError(OCCError):
    """A flag, an environment variable or config.toml has an unusable value."""


class AlreadyRunning(OCCError):
    """Another daemon holds the lock of this home."""


class NotRunning(OCCError):
    """A command needs the daemon of this home, and it does not run."""


class StartFailed(OCCError):
    """The daemon cannot start.

    The port is in use, the home cannot be written, or a part ends again and again.
    """


class SchemaTooNew(StartFailed):
    """A newer OCC wrote occ.db."""


class NotWritten(OCCError):
    """The file that a command should write exists already or cannot be written."""


class Unreachable(OCCError):
    """An agent or a hub does not answer."""


class Untrusted(Unreachable):
    """An agent's certificate is not trusted, or is not the pinned one.

    A retry cannot help.
    """


class Lost(Unreachable):
    """The stream of an execution cannot be resumed.

    The execution continues without its reader.
    """


class Refused(OCCError):
    """An agent or a hub answered with an error."""

    def __init__(
        self,
        message: str,
        status: int,
        code: str = "",
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.details = dict(details or {})
        self.status = status
        self.code = code
        self.retry_after = retry_after

    @property
    def away(self) -> bool:
        """Return whether a retry can help: 503, or a proxy that cannot reach OCC."""
        return self.status == 503 or (not self.code and self.status in GATEWAY_STATUSES)


class RequestError(OCCError):
    """The base class of errors for callers of the API.

    It has a `code` of the wire contract, a sentence and details.
    """

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.details = dict(details or {})


class InvalidRequest(RequestError):
    """A request is well-formed but cannot be served as it is."""

    def __init__(self, message: str, details: Mapping[str, Any] | None = None, code: str = "INVALID_REQUEST") -> None:
        super().__init__(code, message, details)


class ArchiveError(InvalidRequest):
    """An uploaded zip is refused; `code` begins with ZIP_."""

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, details, code)


class Forbidden(RequestError):
    """A known caller lacks the permission."""

    def __init__(self, message: str) -> None:
        super().__init__("FORBIDDEN", message)


class NotFound(RequestError):
    """A workspace, an execution, an agent or a key does not exist.

    An object that the caller may not see counts as missing.
    """


class Conflict(RequestError):
    """An execution exists with another body, or a workspace is in use."""


class TooLarge(RequestError):
    """A body or a zip is over its size limit."""

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__("BODY_TOO_LARGE", message, details)


class QueueFull(RequestError):
    """OCC_MAX_QUEUE executions are waiting."""

    def __init__(self, waiting: int) -> None:
        super().__init__(
            "QUEUE_FULL",
            f"The queue is full: {waiting} executions are waiting. Try again later, or raise OCC_MAX_QUEUE (on a hub,"
            " OCC_HUB_MAX_QUEUE).",
            {"queued": waiting},
        )


class Unavailable(RequestError):
    """A request cannot be served now; the caller may retry."""


def unwritable(error: OSError) -> RequestError:
    """Return the error for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace()
    if error.errno == errno.EFBIG:
        return NoSpace("A file would exceed the size limit of the process. Raise `ulimit -f` for OCC and restart it.")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Unavailable("BUSY", "OCC has no open file left. Raise `ulimit -n` for OCC and restart it.")
    return Unavailable(
        "BUSY",
        f"OCC cannot write to its home folder ({(error.strerror or 'unknown').lower()}). Make it writable, then"
        " try again.",
    )


class NoSpace(RequestError):
    """The disk has no room for the request."""

    def __init__(
        self, message: str = "The disk is full. Free some space under OCC's home folder and try again."
    ) -> None:
        super().__init__("NO_SPACE", message)


def approval_not_found(approval_id: str) -> NotFound:
    return NotFound(
        "APPROVAL_NOT_FOUND",
        f"There is no approval {approval_id}. List the approvals with `occ approvals` or GET /approvals.",
        {"approvalId": approval_id},
    )


def rule_not_found(rule_id: str) -> NotFound:
    return NotFound(
        "RULE_NOT_FOUND",
        f"There is no rule {rule_id}; `occ rules list`, or GET /rules, lists them.",
        {"ruleId": rule_id},
    )


def execution_not_found(execution_id: str) -> NotFound:
    return NotFound(
        "EXECUTION_NOT_FOUND",
        f"There is no execution {execution_id}. List the executions with `occ jobs` or GET /executions.",
        {"executionId": execution_id},
    )


def changes_not_found(execution_id: str, reason: str) -> NotFound:
    return NotFound(
        "CHANGES_NOT_FOUND",
        f"The changes of execution {execution_id} are not available ({reason}). docs/protocol.md explains the reasons.",
        {"executionId": execution_id, "reason": reason},
    )


def file_not_found(path: str, why: str = "it does not exist") -> NotFound:
    return NotFound(
        "FILE_NOT_FOUND",
        f"There is no file at this path: {why}. List the files with GET …/files.",
        {"path": path[:4096]},
    )


def workspace_not_found(workspace_id: str, generation: int | None = None) -> NotFound:
    """Return the error for an unknown workspace.

    With `generation`, its id may name another workspace by now.
    """
    which = "" if generation is None else f" with the number {generation}"
    return NotFound(
        "WORKSPACE_NOT_FOUND",
        f"There is no workspace {workspace_id}{which}. Upload one with `occ run --dir` or POST /workspace/init.",
        {"workspaceId": workspace_id},
    )


def workspace_changed(workspace_id: str, expected: int, found: int | None) -> Conflict:
    """Return the error for an upload that expects another state of its id.

    0 or None stands for no workspace.
    """
    wanted = f"the workspace with the number {expected}" if expected else "no workspace"
    there = f"a workspace with the number {found}" if found else "none"
    return Conflict(
        "WORKSPACE_CONFLICT",
        f"The upload expects {wanted} under the id {workspace_id}, but there is {there}. Look at it, then"
        " upload again.",
        {"workspaceId": workspace_id},
    )


def workspace_is_folder(workspace_id: str) -> Conflict:
    return Conflict(
        "WORKSPACE_IS_FOLDER",
        f"Workspace {workspace_id} is a project, a folder of its machine: OCC does not overwrite, delete or archive"
        " it. Remove it from the list with `occ projects remove` on that machine.",
        {"workspaceId": workspace_id},
    )
