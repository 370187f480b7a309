"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from littlebigcluster.settings import PAGE_SIZES, ClusterSettings

F = TypeVar("F", bound=Callable[..., Any])

new_id_option = click.option("--id", "new_id", metavar="NAME", help="The new cluster's id; made up if not given.")

output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE",
    help="Where to write the database to.",
)  # fmt: skip


def cluster_options(command: F) -> F:
    """--page-size, --compression, --foreign-keys: for `cluster_settings`."""
    options = [
        click.option(
            "--page-size", type=click.Choice([str(size) for size in PAGE_SIZES]), default="4096", show_default=True,
            help="SQLite's page size in bytes; never changes later.",
        ),
        click.option(
            "--compression", type=click.Choice(["zstd", "none"]), default="zstd", show_default=True,
            help="How the objects of the log are stored.",
        ),
        click.option("--foreign-keys", is_flag=True, help="Enforce foreign keys; never changes later."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def cluster_settings(options: dict[str, Any]) -> ClusterSettings:
    """The settings that the options say."""
    return ClusterSettings(**options | {"page_size": int(options["page_size"])})
