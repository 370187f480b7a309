"""`lbc restore`: what was, as a file. `lbc rollback`: what was, as what is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from littlebigcluster.cli import text
from littlebigcluster.cluster import Cluster
from littlebigcluster.epochs import Point
from littlebigcluster.settings import NodeSettings


async def restore(cluster: Cluster, path: Path, point: Point | None, *, overwrite: bool) -> None:
    """Write the file, with a progress bar on a terminal."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("restore", total=None)
        metadata = await cluster.restore(
            path,
            point,
            overwrite=overwrite,
            on_bytes=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    size = metadata.database_pages * metadata.page_size
    text.show(f"{path}: epoch {metadata.epoch} of {text.moment(metadata.created_at)}, {text.size(size)}, checked")


async def rollback(cluster: Cluster, point: Point, settings: NodeSettings, *, act: bool) -> None:
    """Say what would come back; with `act`, bring it back."""
    now = await cluster.status()
    async with cluster.at(point) as state:
        then = state.metadata
    text.show(f"Now:   epoch {now.epoch} of {text.moment(now.last_update)}")
    text.show(f"Then:  epoch {then.epoch} of {text.moment(then.created_at)}")
    if not act:
        text.show("Nothing was done. With --yes the state of then becomes a new epoch; what is now stays in the log.")
        return
    done = await cluster.rollback(then.epoch, settings=settings)
    text.show(f"Done:  epoch {done.epoch} is as epoch {done.value} was. To undo it: lbc rollback --to {done.epoch - 1}")
