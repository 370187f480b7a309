"""`lbc export`, `lbc import`, `lbc clone`: databases that move out of a cluster, and into a new one."""

from __future__ import annotations

from pathlib import Path

from littlebigcluster.cli import text
from littlebigcluster.cli.past import progress_bar
from littlebigcluster.cluster import Cluster
from littlebigcluster.epochs import Metadata, Point
from littlebigcluster.settings import ClusterSettings


async def export_file(cluster: Cluster, path: Path, point: Point | None, *, overwrite: bool) -> None:
    """Write the plain file, with a progress bar on a terminal."""
    with progress_bar() as on_bytes:
        metadata = await cluster.export(path, point, overwrite=overwrite, on_bytes=on_bytes)
    text.show(f"{path}: {_epoch(metadata)}, {text.size(path.stat().st_size)}, checked")


async def import_file(cluster: Cluster, path: Path, cluster_id: str | None, settings: ClusterSettings) -> None:
    """Make the cluster of the file, with a progress bar on a terminal for the upload."""
    with progress_bar() as on_bytes:
        made = await cluster.import_file(path, cluster_id, settings=settings, on_bytes=on_bytes)
    text.show(f'{cluster.store.url}: cluster "{made}" begins with {path}, {text.size(path.stat().st_size)}')


async def clone(source: Cluster, target: Cluster, point: Point | None, cluster_id: str | None) -> None:
    """Make the new cluster of the old one."""
    with progress_bar() as on_bytes:
        made, metadata = await source.clone(target, point, id=cluster_id, on_bytes=on_bytes)
    text.show(f'{target.store.url}: cluster "{made}" begins with {_epoch(metadata)} of "{metadata.cluster_id}"')


def _epoch(metadata: Metadata) -> str:
    return f"epoch {metadata.epoch} of {text.moment(metadata.created_at)}"
