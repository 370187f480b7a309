"""A cluster as it is: init, status, sql, log."""

from __future__ import annotations

import logging
from typing import Any

import click

from littlebigcluster.cli.log import show_log
from littlebigcluster.cli.options import cluster_options, cluster_settings, json_option, new_id_option, tls_options
from littlebigcluster.cli.place import Place, cli
from littlebigcluster.cli.points import PointType, one_point, point_options
from littlebigcluster.cli.reading import show_sql, show_status
from littlebigcluster.cli.signals import run
from littlebigcluster.settings import NodeSettings


@cli.command()
@new_id_option
@cluster_options
@click.pass_obj
def init(place: Place, /, new_id: str | None, **options: Any) -> None:
    """Make a new cluster in the store."""
    logger = logging.getLogger("lbc")
    cluster, settings = place.cluster(), cluster_settings(options)
    logger.info("Initializing cluster...")
    run(cluster.init(new_id, settings=settings))
    logger.info("Cluster initialized!")


@cli.command()
@click.option("--store-only", is_flag=True, help="Do not ask the leader.")
@json_option
@tls_options
@click.pass_obj
def status(place: Place, /, store_only: bool, as_json: bool, **tls: Any) -> None:
    """How the cluster is: by its leader, or else by the store, and which of them says it.

    Joins nothing, writes nothing. The JSON has the same fields in both cases; `source` is "leader" or "store", and
    `members` is null when only the store was read. `leader_error` says why the leader did not answer.
    """
    run(show_status(place.cluster(), None if store_only else NodeSettings(**tls), as_json=as_json))


@cli.command()
@click.argument("statement")
@point_options
@json_option
@click.pass_obj
def sql(place: Place, statement: str, at: Any, epoch: Any, ago: Any, as_json: bool) -> None:
    """Read the database as it is, or was, without joining.

    STATEMENT is one SQL statement that only reads.
    """
    run(show_sql(place.cluster(), statement, one_point(at, epoch, ago), as_json=as_json))


@cli.command()
@click.option(
    "--limit", type=click.IntRange(min=0), default=20, show_default=True, help="So many epochs; 0 shows all there are."
)
@click.option("--since", type=PointType(), metavar="POINT", help="From that point on: 1234, 2026-11-22T10:00Z, 2h.")
@click.option("--term", type=int, metavar="N", help="Of this term.")
@click.option("--leader", metavar="UUID", help="Of this leader; the beginning or the end of its id will do.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option("--tables", is_flag=True, help="Also the tables that each touched; it restores what was before them.")
@json_option
@click.pass_obj
def log(place: Place, /, limit: int, **options: Any) -> None:
    """The epochs of the log, the newest last.

    With --tables it also tells the tables of which pages or definitions changed, and "(schema)" when the schema did.
    That restores the state before the first of these epochs to a temporary place, and reads them all.
    """
    run(show_log(place.cluster(), limit=limit or None, **options))
