"""The demonstration."""

from __future__ import annotations

import sys

import click

from littlebigcluster.cli.demo import DemoOptions, run_demo
from littlebigcluster.cli.place import FAILED, Place, cli
from littlebigcluster.cli.signals import run


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
        sys.exit(FAILED)
