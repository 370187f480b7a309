"""Writes docs/CLI.md from the command itself: `python tools/cli_reference.py`. A test compares the two."""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from littlebigcluster.cli.app import cli

TARGET = Path(__file__).parents[1] / "docs" / "CLI.md"

INTRODUCTION = """\
# The `lbc` command

Written by `tools/cli_reference.py` from the command itself; do not edit.

`lbc [OPTIONS] COMMAND [OPTIONS]`, or `python -m littlebigcluster`. An error is one line on stderr and exit code 1; `-v`
before the command adds the traceback. Ctrl-C and SIGTERM end a node in good order: a leader finishes its writes and
releases the leadership. A second one ends it at once.
"""


def reference() -> str:
    """The whole document."""
    parts = [INTRODUCTION, "## Options before the command\n", _options(cli)]
    for name, command in sorted(cli.commands.items()):
        parts += [f"## `{_usage(name, command)}`\n", inspect.cleandoc(command.help or "") + "\n", _options(command)]
    return "\n".join(part for part in parts if part)


def _usage(name: str, command: click.Command) -> str:
    arguments = [found.name.upper() for found in command.params if isinstance(found, click.Argument) and found.name]
    return " ".join(["lbc", name, *arguments])


def _options(command: click.Command) -> str:
    rows = [_row(found) for found in command.params if isinstance(found, click.Option)]
    if not rows:
        return ""
    return "\n".join(["| option | meaning |", "| --- | --- |", *rows]) + "\n"


def _row(option: click.Option) -> str:
    value = option.metavar
    if isinstance(option.type, click.Choice):
        value = ", ".join(map(str, option.type.choices))
    elif value is None and not option.is_flag:
        value = option.type.name.upper().removesuffix(" RANGE")
    names = ", ".join(f"`{name}`" for name in option.opts) + (f" {value}" if value else "")
    meaning = [option.help or ""]
    if option.show_default:
        meaning.append(f"Default: {option.default}.")
    if option.show_envvar:
        meaning.append(f"Also from the environment: `{option.envvar}`.")
    return f"| {names} | {' '.join(meaning)} |"


if __name__ == "__main__":
    TARGET.write_text(reference())
