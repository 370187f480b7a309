"""Databases that move: out of a cluster as a plain file, from a file or another cluster into a new one."""

from __future__ import annotations

from pathlib import Path

from littlebigcluster.clock import Clock
from littlebigcluster.cluster.initialize import initialize_from
from littlebigcluster.cluster.past import restore_file
from littlebigcluster.database import copy_plain, make_plain
from littlebigcluster.epochs import Identity, Metadata, Point, read_identity
from littlebigcluster.roles import OnBytes
from littlebigcluster.settings import ClusterSettings
from littlebigcluster.store import Store
from littlebigcluster.threads import in_thread


async def export_file(
    store: Store,
    path: Path,
    point: Point | None,
    *,
    overwrite: bool,
    expected_id: str | None,
    clock: Clock,
    on_bytes: OnBytes,
) -> Metadata:
    """Like `restore_file`, and the file is plain: the application's data alone, in one file."""
    return await restore_file(
        store, path, point,
        overwrite=overwrite,
        expected_id=expected_id,
        clock=clock,
        on_bytes=on_bytes,
        change=make_plain,
    )  # fmt: skip


async def import_file(
    store: Store,
    path: Path,
    cluster_id: str | None,
    settings: ClusterSettings,
    *,
    clock: Clock,
    on_bytes: OnBytes,
) -> Identity:
    """An application's SQLite file becomes a new cluster. Raises as `copy_plain` and `initialize_from`."""

    async def copied(database: Path) -> None:
        page_size, foreign_keys = settings.page_size, settings.foreign_keys
        await in_thread(lambda: copy_plain(path, database, page_size=page_size, foreign_keys=foreign_keys))

    return await initialize_from(store, cluster_id, settings, copied, clock=clock, on_bytes=on_bytes)


async def clone(
    source: Store,
    target: Store,
    point: Point | None,
    cluster_id: str | None,
    *,
    expected_id: str | None,
    clock: Clock,
    on_bytes: OnBytes,
) -> tuple[Identity, Metadata]:
    """The database of `source` as it was becomes a new cluster at `target`, with the settings of the old one.
    `on_bytes` is told of the reading, and then of the upload.

    Returns the identity of the new one, and the metadata of the epoch that it begins with. Raises ValueError for the
    id of the old one, and as `export_file` and `initialize_from`.
    """
    identity, _ = await read_identity(source, expected_id=expected_id)
    if cluster_id == identity.cluster_id:
        raise ValueError(f'the clone of cluster "{cluster_id}" needs an id of its own')
    exported: list[Metadata] = []

    async def export(database: Path) -> None:
        exported.append(
            await export_file(
                source, database, point, overwrite=False, expected_id=expected_id, clock=clock, on_bytes=on_bytes
            )
        )

    made = await initialize_from(target, cluster_id, identity.settings, export, clock=clock, on_bytes=on_bytes)
    return made, exported[0]
