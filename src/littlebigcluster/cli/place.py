"""The `lbc` group itself: what its options before the command say."""

from __future__ import annotations

import sys

import click

from littlebigcluster import __version__
from littlebigcluster.cli.logs import log_to
from littlebigcluster.cluster import Cluster

FAILED = 1
"""The exit code of a command that has failed, or found a fault."""


class Place:
    """What the options before the command say."""

    def __init__(self, store: str | None, cluster_id: str | None) -> None:
        self.store, self.cluster_id = store, cluster_id

    def cluster(self) -> Cluster:
        """Raises UsageError without a store, ValueError for one that cannot be."""
        if self.store is None:
            raise click.UsageError("where is the cluster? Give its store with -p, or in LBC_STORE")
        return Cluster(self.store, id=self.cluster_id)


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "-p",
    "--store",
    metavar="STORE",
    envvar="LBC_STORE",
    show_envvar=True,
    help="Where the cluster is: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, or a directory.",
)
@click.option("--cluster", "cluster_id", metavar="ID", help="Refuse a store that holds another cluster than this.")
@click.option("-v", "--verbose", is_flag=True, help="Debug logs, and tracebacks of errors.")
@click.version_option(__version__, prog_name="lbc", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, store: str | None, cluster_id: str | None, verbose: bool) -> None:
    """LittleBigCluster: cluster applications on nothing but an object store."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    context.obj = Place(store, cluster_id)
    # What init, leader and follower tell is their output; elsewhere logs keep out of it.
    tells = context.invoked_subcommand in ("init", "leader", "follower")
    log_to(sys.stdout if tells else sys.stderr, verbose=verbose)
