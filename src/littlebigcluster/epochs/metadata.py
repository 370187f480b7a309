"""The metadata in front of every object of the log, and the identity of a cluster (`docs/FORMAT.md`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, Self
from uuid import UUID

from littlebigcluster.epochs import names
from littlebigcluster.errors import CorruptLog, FormatTooNew
from littlebigcluster.settings import ClusterSettings, Compression

FORMAT_VERSION = 1
"""Grows when an older reader could misread what a newer writer stores."""


@dataclass(frozen=True, slots=True)
class Leader:
    """The coordinates of a leader."""

    uuid: UUID
    address: str
    """host:port, as other nodes reach it; empty while the node does not listen."""
    az: str

    def to_json(self) -> dict[str, str]:
        return {"uuid": str(self.uuid), "address": self.address, "az": self.az}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        return cls(UUID(value["uuid"]), str(value["address"]), str(value["az"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What is known of an object of the log without its content. Field names are those of the stored JSON."""

    kind: Literal["wal", "db", "merged"]
    cluster_id: str
    epoch: int
    term: int
    leader: Leader | None
    """Who leads after this epoch; None when it releases the leadership."""
    created_at: datetime
    """UTC, by the clock of the writer: for people and point-in-time restore only."""
    nonce: str
    """Random: two writers never make the same object by chance."""
    transactions: int
    pages: int
    """Pages in this object."""
    page_size: int
    database_pages: int
    """Size of the database after this epoch."""
    raw_size_bytes: int
    raw_sha256: str
    """Of the content after decompression."""
    stored_xxh3: str
    """XXH3-64 of the bytes that follow the metadata, as they are stored."""
    previous_sha256: str
    """Epochs: of the previous epoch's whole object (the snapshot object for epoch 1). Snapshots: of the whole
    object of the epoch they show, empty for epoch 0, which has no other object."""
    state_checksum: str
    """Of the database after this epoch: 16 hex digits."""
    min_sqlite_version: str
    compression: Compression
    format_version: int = FORMAT_VERSION

    @property
    def name(self) -> str:
        """Of the object that this stands in."""
        return names.wal(self.epoch) if self.kind == "wal" else names.snapshot(self.epoch)

    def to_json(self) -> dict[str, Any]:
        value = {field.name: getattr(self, field.name) for field in fields(self)}
        value["leader"] = self.leader.to_json() if self.leader else None
        value["created_at"] = self.created_at.isoformat()
        return value

    @classmethod
    def from_json(cls, value: Any, *, name: str) -> Self:
        """Raises CorruptLog (naming the object) or FormatTooNew."""
        try:
            version = value["format_version"]
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise FormatTooNew(
                    f"{name} has format version {version}; this version of LittleBigCluster reads up to"
                    f" {FORMAT_VERSION}: upgrade this node"
                )
            known = {field.name: value[field.name] for field in fields(cls)}
            known["leader"] = Leader.from_json(known["leader"]) if known["leader"] else None
            known["created_at"] = datetime.fromisoformat(known["created_at"])
            return cls(**known)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptLog(name, f"complete metadata ({error!r})", offset=8) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedMetadata(Metadata):
    """That of merged epochs: of `epoch`, the last one, but for what is told here. It is a function of the epochs, so
    that it does not matter who merges them, when, or how often.

    `transactions` is the sum, `min_sqlite_version` the highest of all; `nonce` is the beginning of `last_sha256`.
    """

    first_epoch: int
    """`previous_sha256` is what this one has."""
    last_sha256: str
    """Of the whole object of the last epoch: what the epoch after it has as `previous_sha256`."""

    @property
    def name(self) -> str:
        """Of the object that this stands in."""
        return names.merged(self.first_epoch, self.epoch)

    def as_epoch(self) -> Metadata:
        """What is to be known of the last epoch, for who has come there by this object."""
        known = {field.name: getattr(self, field.name) for field in fields(Metadata)}
        return Metadata(**known | {"kind": "wal"})


@dataclass(frozen=True, slots=True)
class Identity:
    """What `cluster.json` says: written once, at `init`."""

    cluster_id: str
    created_at: datetime
    settings: ClusterSettings
    imported: str = ""
    """Random, where the cluster begins with a database from elsewhere: then only who has created this identity may
    write the snapshot of epoch 0. Empty where it begins with nothing: then anybody may."""

    def encode(self) -> bytes:
        value = {
            "format_version": FORMAT_VERSION,
            "cluster_id": self.cluster_id,
            "created_at": self.created_at.isoformat(),
            "page_size": self.settings.page_size,
            "compression": self.settings.compression,
            "foreign_keys": self.settings.foreign_keys,
            "imported": self.imported,
        }
        return json.dumps(value, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, body: bytes, *, name: str) -> Self:
        """Raises CorruptLog or FormatTooNew."""
        try:
            value = json.loads(body)
            version = value["format_version"]
            if version > FORMAT_VERSION:
                raise FormatTooNew(
                    f"the cluster has format version {version}; this version of LittleBigCluster reads up to"
                    f" {FORMAT_VERSION}: upgrade this node"
                )
            settings = ClusterSettings(
                page_size=value["page_size"],
                compression=value["compression"],
                foreign_keys=value["foreign_keys"],
            )
            created_at, imported = datetime.fromisoformat(value["created_at"]), str(value.get("imported", ""))
            return cls(str(value["cluster_id"]), created_at, settings, imported)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptLog(name, f"the identity of a cluster ({error!r})") from error


@dataclass(frozen=True, slots=True)
class Beacon:
    """The idle leader's sign of life. It is news when it differs from the one seen before."""

    cluster_id: str
    term: int
    epoch: int
    count: int
    """Grows with each beacon of a term."""

    def encode(self) -> bytes:
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)}).encode()

    @classmethod
    def decode(cls, body: bytes | None) -> Self | None:
        """None for an absent or damaged beacon: it is a hint, and no sign of life is what it then gives."""
        try:
            value = json.loads(body or b"")
            return cls(str(value["cluster_id"]), int(value["term"]), int(value["epoch"]), int(value["count"]))
        except (KeyError, TypeError, ValueError):
            return None
