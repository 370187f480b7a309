"""`lbc restore`: what was, as a file. `lbc rollback`: what was, as what is. `lbc verify`: whether it is sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from littlebigcluster.cli import text
from littlebigcluster.cli.diff import show_changes
from littlebigcluster.cluster import Cluster, Repaired
from littlebigcluster.epochs import Point
from littlebigcluster.settings import NodeSettings


async def restore(cluster: Cluster, path: Path, point: Point | None, *, overwrite: bool) -> None:
    """Write the file, with a progress bar on a terminal."""
    with progress_bar() as on_bytes:
        metadata = await cluster.restore(path, point, overwrite=overwrite, on_bytes=on_bytes)
    size = metadata.database_pages * metadata.page_size
    text.show(f"{path}: epoch {metadata.epoch} of {text.moment(metadata.created_at)}, {text.size(size)}, checked")


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Shows, on a terminal, how many bytes of how many are read."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


async def verify(cluster: Cluster, *, deep: bool, as_json: bool) -> bool:
    """Print what is wrong, and what can be restored; whether all is well."""
    with progress_bar() as on_bytes:
        verified = await cluster.verify(deep=deep, on_bytes=on_bytes)
    if as_json:
        print(text.json_line(asdict(verified)))
        return not verified.findings
    for finding in verified.findings:
        text.show(text.printable(f"{finding.object}: {finding.problem}"))
    counted = f"{text.count(verified.epochs, 'epoch')}, {text.count(verified.snapshots, 'snapshot')}"
    if verified.merged:
        counted += f", {text.count(verified.merged, 'merged object')}"
    how = "each epoch replayed" if deep else "hashes, chain and snapshots"
    state = text.count(len(verified.findings), "fault") if verified.findings else "all is well"
    text.show(f"{counted}, {text.size(verified.size_bytes)} checked ({how}): {state}")
    text.show(f"Restorable: epochs {text.spans(verified.restorable)}" if verified.restorable else "Restorable: nothing")
    if verified.lost:
        text.show(f"Lost, as repairs tell: epochs {text.spans(verified.lost)}")
    return not verified.findings


_DIFFERENCES = 10


async def rollback(cluster: Cluster, point: Point, settings: NodeSettings, *, act: bool) -> None:
    """Show what would change; with `act`, bring back what was."""
    if not act:
        now = (await cluster.status()).epoch
        async with cluster.diff(now, point) as changes:
            await show_changes(changes, limit=_DIFFERENCES, as_json=False)
            if changes.schema or len(set(changes.user_versions)) > 1:
                print("The schema goes back, too: an application that has migrated it must be able to do so again.")
        print("Nothing was done. With --yes this becomes a new epoch; what is now stays in the log.")
        return
    done = await cluster.rollback(point, settings=settings)
    print(f"Epoch {done.epoch} is as epoch {done.value} was. To undo it: lbc rollback --to {done.epoch - 1} --yes")


async def repair(
    cluster: Cluster, settings: NodeSettings, *, act: bool, foreign_keys: bool | None, as_json: bool
) -> None:
    """Say what is damaged and what helps; with `act`, do it."""
    with progress_bar() as on_bytes:
        found = await cluster.repair(act=act, settings=settings, foreign_keys=foreign_keys, on_bytes=on_bytes)
    if as_json:
        print(text.json_line(asdict(found)))
        return
    for finding in found.findings:
        text.show(text.printable(f"{finding.object}: {finding.problem}"))
    if found.action == "nothing":
        print("Nothing is to be repaired: every node can join, and no damage is without a record.")
        return
    if found.obstacle:
        text.show(text.printable(f"Nobody can join: {found.obstacle}"))
    if found.lost:
        text.show(f"Epochs that cannot be restored: {text.spans(found.lost)}")
    if found.epoch is None:
        text.show(text.printable(_what_helps(found)))
        print("Nothing was done. With --yes it is.")
    elif found.action == "go back":
        print(f"Epoch {found.epoch} is as epoch {found.newest} was. The log goes on from there; nodes can join.")
    elif found.action == "identity":
        text.show(text.printable(f"cluster.json is written: {_identity(found)} Nodes can join."))
    elif found.action == "snapshot":
        print(f"The leader has made a snapshot of epoch {found.epoch}, the newest one. Nodes can join.")
    else:
        print("Done. Nodes can join.")


def _what_helps(found: Repaired) -> str:
    match found.action:
        case "go back":
            return (
                f"Nobody leads. The log would go on after epoch {found.head} with the state of epoch {found.newest},"
                " the newest one that can be restored: what was written since is lost. If a node still runs, or has"
                " kept its directory, start it first: it may have all of it."
            )
        case "snapshot":
            address = found.leader.address if found.leader else ""
            return f"The leader, {address}, has the newest state. It would make a snapshot, from which nodes join."
        case "identity":
            question = f" But {found.question}." if found.question else ""
            return f"cluster.json would be written as the log tells it: {_identity(found)}{question}"
        case "authority":
            return "A new certificate authority would take the place of the damaged one."
        case _:
            return "Nodes can join. Damaged snapshots would be set aside, and a record made of what is damaged."


def _identity(found: Repaired) -> str:
    assert found.identity is not None
    identity, settings = found.identity, found.identity.settings
    foreign_keys = "not known" if found.question else "on" if settings.foreign_keys else "off"
    return (
        f'cluster "{identity.cluster_id}" of {text.moment(identity.created_at)}, page size {settings.page_size},'
        f" compression {settings.compression}, foreign keys {foreign_keys}. Nodes that run do not notice."
    )
