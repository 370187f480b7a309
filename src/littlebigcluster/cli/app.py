"""The entry point of the `lbc` command, and what becomes of its errors."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
import traceback

import click

from littlebigcluster.cli import commands as commands
from littlebigcluster.cli.place import FAILED, cli
from littlebigcluster.cli.signals import Stopped
from littlebigcluster.cli.text import one_line
from littlebigcluster.errors import LbcError, plain_errors


def main() -> None:
    """The entry point of the `lbc` command."""
    sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        with plain_errors():
            cli.main(prog_name="lbc", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        print(f"Error: {one_line(error.format_message()).rstrip('.')}{hint}", file=sys.stderr)
        return FAILED
    except (click.Abort, KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except Stopped as stopped:
        return 128 + stopped.signum
    except Exception as error:
        _explain(error)
        return FAILED
    return 0


def _explain(error: Exception) -> None:
    """One clear line; the traceback with -v."""
    if logging.getLogger("littlebigcluster").level == logging.DEBUG:
        traceback.print_exception(error)
    if isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    expected = isinstance(error, LbcError | ValueError | OSError | sqlite3.Error)
    text = str(error) if expected and str(error) else f"{type(error).__name__}: {error}"
    hint = "" if expected else " (this is a fault of lbc; -v before the command shows where)"
    print(f"Error: {one_line(text)}{hint}", file=sys.stderr)
