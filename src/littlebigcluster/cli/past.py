"""`lbc restore`: what was, as a file."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from littlebigcluster.cli import text
from littlebigcluster.cluster import Cluster
from littlebigcluster.epochs import Point


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
