"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from littlebigcluster.settings import PAGE_SIZES, ClusterSettings, NodeSettings

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = NodeSettings()

json_option = click.option("--json", "as_json", is_flag=True, help="JSON, for programs.")

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
    return _with(command, options)


def cluster_settings(options: dict[str, Any]) -> ClusterSettings:
    """The settings that the options say."""
    return ClusterSettings(**options | {"page_size": int(options["page_size"])})


def _with(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def _file(name: str, help: str) -> Callable[[F], F]:
    kind, variable = click.Path(path_type=Path, dir_okay=False), "LBC_" + name.upper().replace("-", "_")
    return click.option(f"--{name}", type=kind, metavar="FILE", envvar=variable, show_envvar=True, help=help)


def tls_options(command: F) -> F:
    """How the nodes of the cluster talk: nothing else is tried."""
    options = [
        click.option(
            "--tls", type=click.Choice(["on", "off"]), default="on", show_default=True,
            help="Whether nodes talk over TLS; the same on all of them.",
        ),
        _file("tls-certificate", "An own certificate (PEM) instead of one by the cluster's authority."),
        _file("tls-private-key", "Its key."),
        _file("tls-authorities", "The authorities of all nodes' certificates."),
    ]  # fmt: skip
    return _with(command, options)


def seconds_option(name: str, help: str) -> Callable[[F], F]:
    default = getattr(_DEFAULTS, name.replace("-", "_"))
    return click.option(f"--{name}", type=float, metavar="SECONDS", default=default, show_default=True, help=help)


def member_options(command: F) -> F:
    options = [
        click.option("--az", metavar="NAME", default="AZ0", show_default=True, help="This node's availability zone."),
        click.option("--role", "roles", metavar="NAME", multiple=True, help="A role of this node; may come again."),
        click.option("--address", metavar="HOST:PORT", help="Listen here; found by itself if not given."),
        click.option("--advertise", metavar="HOST:PORT", help="Where others reach this node, if not at its address."),
        click.option(
            "--directory",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="PATH",
            help="Keep the local copy here, which makes the next start faster. One per node; a cache, no more.",
        ),
        seconds_option("poll-interval", "Between two looks for the next epoch."),
        click.option("--insecure", is_flag=True, help="With --tls off: serve other machines, too."),
    ]
    return _with(tls_options(command), options)


def join_options(options: dict[str, Any]) -> dict[str, Any]:
    """What `Cluster.join` takes, from what the command line says."""
    settings = {name: options.pop(name) for name in list(options) if hasattr(_DEFAULTS, name)}
    return options | {"settings": NodeSettings(**settings)}
