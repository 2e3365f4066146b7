"""How OCC's processes log: sentences with times on standard error, which the supervisor writes to logs/NAME.log."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from occ_app.system.foreign_text import visible, visible_line


class VisibleFormatter(logging.Formatter):
    """Formats a record so that nothing in it commands a terminal or looks like the start of another record."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the first line of a record; a line break inside the message is escaped."""
        record.message = visible_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: logging._SysExcInfoType) -> str:
        """Return a traceback, indented."""
        return "\n".join(f"  {line}" for line in visible(super().formatException(ei)).split("\n"))


def formatter() -> logging.Formatter:
    """Return the formatter of every handler in OCC's processes, those of libraries included."""
    return VisibleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


def log_to_stderr() -> None:
    """Log to standard error from now on, an exception that ends the process included."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    sys.excepthook = _log_the_end


def _log_the_end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    logging.getLogger("occ").critical("The process ends with a fault.", exc_info=(kind, error, traceback))
