"""The past: restore, verify, rollback, diff."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from littlebigcluster.cli import past
from littlebigcluster.cli.diff import show_diff
from littlebigcluster.cli.options import json_option, output_option, tls_options
from littlebigcluster.cli.place import FAILED, Place, cli
from littlebigcluster.cli.points import PointType, one_point, point_options
from littlebigcluster.cli.signals import run
from littlebigcluster.settings import NodeSettings


@cli.command()
@output_option
@point_options
@click.option("--latest", is_flag=True, help="As it is now; so it is without any point, too.")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@click.pass_obj
def restore(place: Place, output: Path, at: Any, epoch: Any, ago: Any, latest: bool, force: bool) -> None:
    """Write the database as it was at any point within the retention period to a file.

    The file is a SQLite database. It appears when it is whole and all its checksums agree.
    """
    point = one_point(at, epoch, ago)
    if latest and point is not None:
        raise click.UsageError("--latest and a point in time exclude each other")
    run(past.restore(place.cluster(), output, point, overwrite=force))


@cli.command()
@click.option("--deep", is_flag=True, help="Replay every epoch, too.")
@json_option
@click.pass_obj
def verify(place: Place, deep: bool, as_json: bool) -> None:
    """Check everything in the store that is retained: hashes, chain, snapshots.

    Names what is not sound and what can be restored nevertheless. Changes nothing. Exits with 1 for any fault.
    """
    if not run(past.verify(place.cluster(), deep=deep, as_json=as_json)):
        sys.exit(FAILED)


@cli.command()
@click.option("--yes", is_flag=True, help="Do it; else it only says what it would do.")
@click.option(
    "--foreign-keys",
    type=click.Choice(["on", "off"]),
    help="Whether they are enforced; asked for where cluster.json is lost, and nothing else tells it.",
)
@json_option
@tls_options
@click.pass_obj
def repair(place: Place, /, yes: bool, foreign_keys: str | None, as_json: bool, **tls: Any) -> None:
    """See to it that nodes can join again when objects of the log are damaged or missing.

    A leader that is alive makes a snapshot, and no state is lost. If nobody leads, the log goes on with the newest
    state that can be restored; to be sure of that takes 40 seconds. Nothing of the log is deleted. A record in
    .lbc/repairs/ tells of it. A lost cluster.json is written anew, as the log tells it. A cluster that is sound is left
    as it is.
    """
    enforced = None if foreign_keys is None else foreign_keys == "on"
    run(past.repair(place.cluster(), NodeSettings(**tls), act=yes, foreign_keys=enforced, as_json=as_json))


@cli.command()
@click.option("--to", type=PointType(), required=True, metavar="POINT", help="An epoch, a time, or an age: 1234, 2h.")
@click.option("--yes", is_flag=True, help="Do it; else it only shows what would change.")
@tls_options
@click.pass_obj
def rollback(place: Place, /, to: Any, yes: bool, **tls: Any) -> None:
    """Make the database what it was, for the whole cluster, while it runs or not.

    The state of that point becomes a new epoch. The log keeps everything, so a rollback can itself be undone.
    """
    run(past.rollback(place.cluster(), to, NodeSettings(**tls), act=yes))


@cli.command()
@click.option("--from", "from_", type=PointType(), required=True, metavar="POINT", help="The earlier state.")
@click.option("--to", "to", type=PointType(), metavar="POINT", help="The later state; as it is now if not given.")
@click.option("--table", metavar="NAME", help="Compare nothing but this table, and what belongs to it.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="So many rows of each table; 0 shows all.",
)
@json_option
@click.pass_obj
def diff(place: Place, from_: Any, to: Any, table: str | None, limit: int, as_json: bool) -> None:
    """What changed between two points: in the schema, in how many rows of which tables, and in which.

    A point is an epoch (1234), a date and time (2026-11-22T10:00Z), or how long ago (2h, 90m, 1d12h).

    Rows are told apart by their primary key, else by their rowid, which VACUUM may change, else by their whole content.
    Virtual tables are compared by what they give. The library's own tables and SQLite's are left out.

    The JSON is one object per line: the two epochs, the changes of the schema, each table that differs, and behind it
    its rows; of rows that changed, the columns that did.
    """
    run(show_diff(place.cluster(), from_, to, table=table, limit=limit or None, as_json=as_json))
