"""The `lbc` command: its options, its errors, and its parts."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from littlebigcluster import __version__
from littlebigcluster.cli import moving, past
from littlebigcluster.cli.demo import DemoOptions, run_demo
from littlebigcluster.cli.diff import show_diff
from littlebigcluster.cli.log import show_log
from littlebigcluster.cli.logs import log_to
from littlebigcluster.cli.member import run_member
from littlebigcluster.cli.options import cluster_options, cluster_settings, new_id_option, output_option
from littlebigcluster.cli.points import PointType, one_point, point_options
from littlebigcluster.cli.reading import show_members, show_rotation, show_sql, show_status
from littlebigcluster.cli.signals import Stopped, run
from littlebigcluster.cli.text import one_line
from littlebigcluster.cluster import Cluster
from littlebigcluster.errors import LbcError, plain_errors
from littlebigcluster.settings import NodeSettings

_FAILED = 1
_DEFAULTS = NodeSettings()

F = TypeVar("F", bound=Callable[..., Any])


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


def _seconds(name: str, help: str) -> Callable[[F], F]:
    default = getattr(_DEFAULTS, name.replace("-", "_"))
    return click.option(f"--{name}", type=float, metavar="SECONDS", default=default, show_default=True, help=help)


def _member_options(command: F) -> F:
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
        _seconds("poll-interval", "Between two looks for the next epoch."),
        click.option("--insecure", is_flag=True, help="With --tls off: serve other machines, too."),
    ]
    return _with(_tls_options(command), options)


def _with(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def _file(name: str, help: str) -> Callable[[F], F]:
    kind, variable = click.Path(path_type=Path, dir_okay=False), "LBC_" + name.upper().replace("-", "_")
    return click.option(f"--{name}", type=kind, metavar="FILE", envvar=variable, show_envvar=True, help=help)


def _tls_options(command: F) -> F:
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


def _join_options(options: dict[str, Any]) -> dict[str, Any]:
    """What `Cluster.join` takes, from what the command line says."""
    settings = {name: options.pop(name) for name in list(options) if hasattr(_DEFAULTS, name)}
    return options | {"settings": NodeSettings(**settings)}


@cli.command()
@_member_options
@_seconds("leader-timeout", "So long without a sign of life of the leader, and this node takes over.")
@_seconds("epoch-interval", "Between epochs on average, while this node leads; 0 writes as fast as the store can.")
@_seconds("retention", "For which any point in time stays restorable; what is older is deleted while this node leads.")
@click.pass_obj
def leader(place: Place, /, **options: Any) -> None:
    """Join, and lead as soon as nobody else does. Several may run: all but one stand by."""
    run_member(place.cluster(), can_lead=True, **_join_options(options))


@cli.command()
@_member_options
@click.pass_obj
def follower(place: Place, /, **options: Any) -> None:
    """Join, and follow whoever leads."""
    run_member(place.cluster(), can_lead=False, **_join_options(options))


_json = click.option("--json", "as_json", is_flag=True, help="JSON, for programs.")


@cli.command()
@_json
@_tls_options
@click.pass_obj
def members(place: Place, /, as_json: bool, **tls: Any) -> None:
    """Who is in the cluster, as its leader tells."""
    run(show_members(place.cluster(), NodeSettings(**tls), as_json=as_json))


@cli.command()
@click.option("--to", metavar="UUID", help="Who shall lead; the standby with the lowest lag if not given.")
@_tls_options
@click.pass_obj
def step_down(place: Place, /, to: str | None, **tls: Any) -> None:
    """Have the leader hand over to a standby; no write is lost."""
    run(place.cluster().ask_leader("POST", "/.lbc/step-down", {"to": to}, settings=NodeSettings(**tls)))
    click.echo("The leader has handed over.")


@cli.command()
@click.option(
    "--at-once", is_flag=True,
    help="The key has leaked: trust no former authority any more. Nodes may refuse each other for 10 minutes.",
)  # fmt: skip
@click.pass_obj
def rotate_authority(place: Place, at_once: bool) -> None:
    """Change the cluster's certificate authority, while nodes run.

    Says what happens when. May be repeated: while one change is under way, it only says how far that is.
    """
    run(show_rotation(place.cluster(), at_once=at_once))


@cli.command()
@click.option("--store-only", is_flag=True, help="Do not ask the leader.")
@_json
@_tls_options
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
@_json
@click.pass_obj
def sql(place: Place, statement: str, at: Any, epoch: Any, ago: Any, as_json: bool) -> None:
    """Read the database as it is, or was, without joining.

    STATEMENT is one SQL statement that only reads.
    """
    run(show_sql(place.cluster(), statement, one_point(at, epoch, ago), as_json=as_json))


@cli.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@new_id_option
@cluster_options
@click.pass_obj
def import_file(place: Place, /, file: Path, new_id: str | None, **options: Any) -> None:
    """Make a new cluster in the store of an application's SQLite database.

    FILE is only read, and may be in use; a copy of it, as of one moment and checked, is what the cluster begins with.
    """
    run(moving.import_file(place.cluster(), file, new_id, cluster_settings(options)))


@cli.command()
@click.argument("source")
@click.argument("dest")
@point_options
@new_id_option
@click.pass_obj
def clone(place: Place, source: str, dest: str, at: Any, epoch: Any, ago: Any, new_id: str | None) -> None:
    """Make a new cluster of another one as it is, or was.

    SOURCE and DEST are stores, as for -p, of any kind. SOURCE is only read, and DEST must hold no cluster. The new one
    has an id and a certificate authority of its own. Objects of the application in SOURCE are not copied.
    """
    run(moving.clone(Cluster(source, id=place.cluster_id), Cluster(dest), one_point(at, epoch, ago), new_id))


@cli.command()
@output_option
@point_options
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@click.pass_obj
def export(place: Place, output: Path, at: Any, epoch: Any, ago: Any, force: bool) -> None:
    """Write the application's database, as it is or was, to a plain SQLite file.

    Unlike `restore` without the library's own tables, and in one file that is not in WAL mode.
    """
    run(moving.export_file(place.cluster(), output, one_point(at, epoch, ago), overwrite=force))


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
@_json
@click.pass_obj
def verify(place: Place, deep: bool, as_json: bool) -> None:
    """Check everything in the store that is retained: hashes, chain, snapshots.

    Names what is not sound and what can be restored nevertheless. Changes nothing. Exits with 1 for any fault.
    """
    if not run(past.verify(place.cluster(), deep=deep, as_json=as_json)):
        sys.exit(_FAILED)


@cli.command()
@click.option("--to", type=PointType(), required=True, metavar="POINT", help="An epoch, a time, or an age: 1234, 2h.")
@click.option("--yes", is_flag=True, help="Do it; else it only shows what would change.")
@_tls_options
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
@_json
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


@cli.command()
@click.option(
    "--limit", type=click.IntRange(min=0), default=20, show_default=True, help="So many epochs; 0 shows all there are."
)
@click.option("--since", type=PointType(), metavar="POINT", help="From that point on: 1234, 2026-11-22T10:00Z, 2h.")
@click.option("--term", type=int, metavar="N", help="Of this term.")
@click.option("--leader", metavar="UUID", help="Of this leader; the beginning or the end of its id will do.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@_json
@click.pass_obj
def log(place: Place, /, limit: int, **options: Any) -> None:
    """The epochs of the log, the newest last."""
    run(show_log(place.cluster(), limit=limit or None, **options))


@cli.command()
@click.option("--keep", is_flag=True, help="Leave the cluster running at the end, and say how to join it.")
@click.option(
    "--seconds", type=click.FloatRange(0.5, 600), default=8.0, show_default=True, metavar="SECONDS",
    help="How long to write before the leader is killed, and again after.",
)  # fmt: skip
@click.pass_obj
def demo(place: Place, keep: bool, seconds: float) -> None:
    """A cluster of four processes that loses its leader and goes on.

    Uses a temporary directory, or the store given with -p, which must be empty.
    """
    if not run(run_demo(DemoOptions(store=place.store, keep=keep, phase_seconds=seconds))):
        sys.exit(_FAILED)


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
        return _FAILED
    except (click.Abort, KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except Stopped as stopped:
        return 128 + stopped.signum
    except Exception as error:
        _explain(error)
        return _FAILED
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
