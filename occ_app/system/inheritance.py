"""The process state that a parent hands down, set for OCC.

docs/reliability.md lists all of it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import TextIO

from occ_app.system.kernel import allow_many_files, die_with_parent
from occ_app.system.strays import children_of_this

_PYTHONS_OWN = (signal.SIGPIPE, signal.SIGXFSZ)  # ignored by Python, and restored by subprocess in a child
_OPEN_FILES = 4096
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def open_standard_descriptors() -> None:
    """Open descriptors 0 to 2 where they are closed.

    Otherwise a file or a socket would take their numbers. Reading from 0 and writing to 1 then fail, as they would on
    a closed descriptor. Output to 2 is discarded.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or _stream(0, "r")
    sys.stdout = sys.stdout or _stream(1, "w")
    sys.stderr = sys.stderr or _stream(2, "w")


def prepare_command() -> None:
    """Set the process state for a command.

    This covers descriptors, the umask, a signal mask that blocks nothing, and children to wait for. A lower soft limit
    on open files is raised to 4,096, or to the hard limit.

    Signals that `nohup` or a shell ignores for a background job stay ignored.
    """
    open_standard_descriptors()
    os.umask(0o077)
    allow_many_files(_OPEN_FILES)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # the kernel would reap children before they are waited for
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def prepare_daemon() -> None:
    """Set the process state for a daemon.

    As `prepare_command`, and with default actions for all ignored signals. Soft limits on processor time and file size
    are raised to the hard limits.
    """
    prepare_command()
    for number in signal.valid_signals() - {*_PYTHONS_OWN, signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for limit in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (hard, hard))


def leave_strangers() -> None:
    """Continue in a child if this process may get children that OCC did not start.

    That is so for the first process of a container, and for one that replaced a shell by exec. Orphans of others then
    come to the original process, which reaps them, forwards signals to the child and exits with the child's status.
    """
    if os.getpid() != 1 and not children_of_this():
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [*_FORWARDED, signal.SIGCHLD])
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent(parent, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*_FORWARDED, signal.SIGCHLD])
        return
    os._exit(_await(child))


def _await(child: int) -> int:
    """Reap all children and forward signals until `child` ends.

    Returns its exit code, or 128 + N for signal N.
    """
    while True:
        number = signal.sigwait([*_FORWARDED, signal.SIGCHLD])
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)  # `child` is one of them until this returns its status
            if pid == 0:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


def _stream(descriptor: int, mode: str) -> TextIO:
    return open(descriptor, mode, encoding="utf-8", closefd=False)  # type: ignore[return-value]  # mypy knows the type of a literal mode only
