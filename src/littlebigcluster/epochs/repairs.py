"""Records of repairs: where the log is damaged, from where on it is good again, and what is lost in between.

Nothing of the log is deleted by a repair, so the damage stays where it is, and this is what tells of it: to people, to
`verify`, to retention, and to who asks for a state that cannot be restored any more.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

from littlebigcluster.epochs import names
from littlebigcluster.epochs.prefetch import in_order
from littlebigcluster.errors import CorruptLog, NotRetained
from littlebigcluster.store import ObjectInfo, Store

_WINDOW = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One record. It speaks of what was damaged up to `epoch`."""

    cluster_id: str
    epoch: int
    """From here on everything can be restored: there is a snapshot of it that retention does not thin out."""
    back_to: int | None
    """The epoch whose state this one has, as there was no way to a later one. None: no state was given up."""
    at: datetime
    by: str
    """User, host and version."""
    damaged: dict[str, str]
    """What is wrong with which object."""
    lost: list[tuple[int, int]]
    """From which to which epoch none can be restored."""

    def encode(self) -> bytes:
        return json.dumps(asdict(self) | {"at": self.at.isoformat()}, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, body: bytes) -> Self | None:
        """None for a damaged one."""
        try:
            value: dict[str, Any] = json.loads(body)
            back_to = value["back_to"]
            return cls(
                cluster_id=str(value["cluster_id"]),
                epoch=int(value["epoch"]),
                back_to=None if back_to is None else int(back_to),
                at=datetime.fromisoformat(value["at"]),
                by=str(value["by"]),
                damaged={str(name): str(problem) for name, problem in value["damaged"].items()},
                lost=[(int(first), int(last)) for first, last in value["lost"]],
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def has_lost(self, epoch: int) -> bool:
        return any(first <= epoch <= last for first, last in self.lost)

    def covers(self, name: str) -> bool:
        """Whether it tells of the damage of this object of the log, or of what follows from it."""
        parsed = names.parse(name)
        return name in self.damaged or (parsed is not None and self.has_lost(parsed[1]))


async def read_repairs(store: Store, listing: Iterable[ObjectInfo] | None = None) -> list[Repair]:
    """All of them, oldest first; those in `listing` without another look. Damaged ones are left out.
    Raises StoreUnavailable."""
    if listing is None:
        listing = await store.list(names.REPAIRS)
    keys = [info.key for info in listing if (names.parse_kept(info.key) or ("", 0))[0] == "json"]
    found = [Repair.decode(body or b"") async for body in in_order(map(store.get, keys), window=_WINDOW)]
    return [repair for repair in found if repair is not None]


@contextlib.asynccontextmanager
async def lost_is_told(store: Store, epoch: int) -> AsyncIterator[None]:
    """Around what restores `epoch`: damage that a repair has given up is no news. Raises NotRetained for it."""
    try:
        yield
    except CorruptLog as error:
        repair = next((each for each in await read_repairs(store) if each.has_lost(epoch)), None)
        if repair is None:
            raise
        first, last = next(span for span in repair.lost if span[0] <= epoch <= span[1])
        date = repair.at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        raise NotRetained(
            f"epoch {epoch} is lost: the log was damaged, and repaired at {date}; what can be restored ends before"
            f" epoch {first}, and begins again with epoch {last + 1} ({names.repair(repair.epoch)})"
        ) from error
