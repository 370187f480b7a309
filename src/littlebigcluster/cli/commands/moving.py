"""Databases in and out: import, clone, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from littlebigcluster.cli import moving
from littlebigcluster.cli.options import cluster_options, cluster_settings, new_id_option, output_option
from littlebigcluster.cli.place import Place, cli
from littlebigcluster.cli.points import one_point, point_options
from littlebigcluster.cli.signals import run
from littlebigcluster.cluster import Cluster


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
