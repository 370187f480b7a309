"""A store before there is a cluster, or beside one: doctor."""

from __future__ import annotations

import sys

import click

from littlebigcluster.cli import doctor as examining
from littlebigcluster.cli.options import json_option
from littlebigcluster.cli.place import FAILED, Place, cli
from littlebigcluster.cli.signals import run


@cli.command()
@click.argument("store", required=False)
@json_option
@click.pass_obj
def doctor(place: Place, store: str | None, as_json: bool) -> None:
    """Try out whether a store keeps all that a cluster needs of it.

    STORE is a location as for -p, which is meant if none is given. There may be a cluster in it, in use: all happens
    below .lbc/doctor-<random>/, which is deleted at the end, also when interrupted. Makes about 2,000 requests, for
    about a cent.

    Exits with 1 when a check failed or could not be done: the store is unsafe, or of no use. Warnings do not count.
    """
    location = store or place.store
    if location is None:
        raise click.UsageError("which store? Give its location, or -p, or LBC_STORE")
    if not run(examining.doctor(location, as_json=as_json)):
        sys.exit(FAILED)
