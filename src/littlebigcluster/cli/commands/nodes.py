"""Nodes, and those that run: leader, follower, members, step-down, snapshot, rotate-authority."""

from __future__ import annotations

from typing import Any

import click

from littlebigcluster.cli.member import run_member
from littlebigcluster.cli.options import join_options, json_option, member_options, seconds_option, tls_options
from littlebigcluster.cli.place import Place, cli
from littlebigcluster.cli.reading import show_members, show_rotation, show_snapshot
from littlebigcluster.cli.signals import run
from littlebigcluster.settings import NodeSettings


@cli.command()
@member_options
@click.option(
    "--leader-priority",
    type=int,
    metavar="NUMBER",
    default=0,
    show_default=True,
    help="Of several that stand by the one with the highest leads next.",
)
@seconds_option("leader-timeout", "So long without a sign of life of the leader, and this node takes over.")
@seconds_option("suspect-timeout", "So long without hearing the leader, and this node asks the others for it.")
@seconds_option(
    "epoch-interval", "Between epochs on average, while this node leads; 0 writes as fast as the store can."
)
@seconds_option(
    "retention", "For which any point in time stays restorable; what is older is deleted while this node leads."
)
@click.pass_obj
def leader(place: Place, /, **options: Any) -> None:
    """Join, and lead as soon as nobody else does. Several may run: all but one stand by."""
    run_member(place.cluster(), can_lead=True, **join_options(options))


@cli.command()
@member_options
@click.pass_obj
def follower(place: Place, /, **options: Any) -> None:
    """Join, and follow whoever leads."""
    run_member(place.cluster(), can_lead=False, **join_options(options))


@cli.command()
@json_option
@tls_options
@click.pass_obj
def members(place: Place, /, as_json: bool, **tls: Any) -> None:
    """Who is in the cluster, as its leader tells."""
    run(show_members(place.cluster(), NodeSettings(**tls), as_json=as_json))


@cli.command()
@click.option("--to", metavar="UUID", help="Who shall lead; the first standby in rank if not given.")
@tls_options
@click.pass_obj
def step_down(place: Place, /, to: str | None, **tls: Any) -> None:
    """Have the leader hand over to a standby; no write is lost."""
    run(place.cluster().ask_leader("POST", "/.lbc/step-down", {"to": to}, settings=NodeSettings(**tls)))
    click.echo("The leader has handed over.")


@cli.command()
@json_option
@tls_options
@click.pass_obj
def snapshot(place: Place, /, as_json: bool, **tls: Any) -> None:
    """Have a snapshot made now: by a follower if there is one, else by the leader.

    Nodes make snapshots by themselves; this is for before an upgrade, or when many nodes are about to join.
    """
    run(show_snapshot(place.cluster(), NodeSettings(**tls), as_json=as_json))


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
