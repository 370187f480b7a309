"""Log lines as the original prints them: `2024-10-06T23:10:01.765891Z  INFO lbc: Initializing cluster...`."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TextIO

from littlebigcluster.cli.text import colours_of

_COLOURS = {logging.DEBUG: "34", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31"}
_DIM = "2"


class LineFormatter(logging.Formatter):
    """One line each; a traceback only when asked for."""

    def __init__(self, *, colours: bool, tracebacks: bool) -> None:
        super().__init__()
        self._colours, self._tracebacks = colours, tracebacks

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        level = self._painted(f"{record.levelname:>5}", _COLOURS.get(record.levelno, "31"))
        line = f"{self._painted(moment, _DIM)} {level} {self._painted(record.name + ':', _DIM)} {record.getMessage()}"
        if record.exc_info and self._tracebacks:
            line += "\n" + self.formatException(record.exc_info)
        return line

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text


def log_to(stream: TextIO, *, verbose: bool) -> None:
    """Show what the command itself tells, and of the library warnings and worse, or everything when `verbose`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(colours=colours_of(stream), tracebacks=verbose))
    # The names of levels are as wide as the original's.
    logging.addLevelName(logging.WARNING, "WARN")
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("lbc").setLevel(logging.INFO)
    logging.getLogger("littlebigcluster").setLevel(logging.DEBUG if verbose else logging.WARNING)
