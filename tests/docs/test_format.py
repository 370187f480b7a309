"""docs/FORMAT.md against the code, and against the objects of a real cluster."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import struct
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import xxhash

import littlebigcluster as lbc
from littlebigcluster.epochs import FORMAT_VERSION, Beacon, Leader, MergedMetadata, Metadata, Repair, names
from littlebigcluster.epochs.merged import FANOUT, LEVELS
from littlebigcluster.epochs.pins import Pin
from littlebigcluster.roles.merger import MAX_MERGED_BYTES
from littlebigcluster.roles.retention import STANDING_SECONDS
from littlebigcluster.settings import Compression
from tests.docs.documents import DOCS, blocks, code, section, table

FORMAT = DOCS / "FORMAT.md"
TYPES: dict[str, Any] = {
    "number": int,
    "string": str,
    "boolean": bool,
    "object or null": (dict, type(None)),
    "integer": int,
    "text": str,
}


def field_names(heading: str) -> list[str]:
    return [code(row.get("field") or row["key"]) for row in table(FORMAT, heading)]


def field_types(heading: str) -> dict[str, str]:
    return {code(row.get("field") or row["key"]): row["type"] for row in table(FORMAT, heading)}


def names_of(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


# Names


def test_metadata_fields_are_those_of_the_code() -> None:
    assert field_names("Metadata") == [*names_of(Metadata), "check"]


def test_metadata_of_merged_epochs_has_two_members_more() -> None:
    assert names_of(MergedMetadata) == names_of(Metadata) + field_names("Merged epochs")[-2:]
    assert set(field_names("Merged epochs")[:-2]) < set(names_of(Metadata))
    told = section(FORMAT, "Merged epochs")
    assert f"merge {FANOUT} epochs" in told
    assert LEVELS == 3
    assert f"{MAX_MERGED_BYTES >> 20} MiB of pages" in told


def test_beacon_fields_are_those_of_the_code() -> None:
    assert field_names("Beacon") == names_of(Beacon)


def test_pin_fields_are_those_of_the_code() -> None:
    assert field_names("Pins") == names_of(Pin)
    assert field_names("Repairs") == names_of(Repair)
    assert json.loads(Pin(1, 2.0, "why").encode()) == {"epoch": 1, "ttl_seconds": 2.0, "purpose": "why"}
    assert f"{STANDING_SECONDS:.0f} seconds" in section(FORMAT, "Markers")


def test_leader_fields_are_those_of_the_code() -> None:
    (leader,) = (row["meaning"] for row in table(FORMAT, "Metadata") if row["field"] == "`leader`")
    assert all(f"`{name}`" in leader for name in names_of(Leader))


def test_object_names_are_those_of_the_code() -> None:
    documented = {code(row["object"]) for row in table(FORMAT, "Objects") if "`" in row["object"]}
    made = {names.CLUSTER, names.LAST_SNAPSHOT, names.LAST_RETAINED, names.BEACON}
    made |= {name.replace(f"{7:020}", "N") for name in (names.snapshot(7), names.wal(7))}
    made |= {names.merged(7, 8).replace(f"{7:020}", "N").replace(f"{8:020}", "M")}
    made |= {names.authority(7).replace(f"{7:020}", "N"), names.pin("NAME")}
    made |= {names.repair(7).replace(f"{7:020}", "N"), names.aside(names.DIRECTORY + "NAME")}
    assert documented == made | {".lbc/probe-*"}


def test_format_version_is_that_of_the_code() -> None:
    assert f"format version {FORMAT_VERSION}." in FORMAT.read_text()


# A real cluster


@dataclass(frozen=True)
class Written:
    """The objects of a cluster that has stopped, and what was read last."""

    log: Path
    compression: Compression
    rows: list[Any]
    system: dict[str, Any]
    identity: dict[str, Any]

    @property
    def epochs(self) -> list[Path]:
        return sorted(path for path in self.log.glob("0*.wal") if "-" not in path.name)

    @property
    def merged(self) -> Path:
        (path,) = self.log.glob("0*-*.wal")
        return path

    @property
    def snapshots(self) -> list[Path]:
        return sorted(self.log.glob("0*.db"))


@pytest.fixture(scope="module", params=["zstd", "none"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return asyncio.run(write(tmp_path_factory.mktemp("store"), request.param))


async def write(store: Path, compression: Compression) -> Written:
    """A snapshot in the middle, epochs before and after it, two terms, the last one released."""
    cluster, log = lbc.Cluster(store), store / ".lbc"
    first_merged = names.merged(1, FANOUT).removeprefix(names.DIRECTORY)
    await cluster.init("007", settings=lbc.ClusterSettings(compression=compression))
    settings = lbc.NodeSettings(epoch_interval=0, snapshot_epochs=5, leader_timeout=0.9)
    async with cluster.join(can_lead=True, az="AZ0", settings=settings) as node, asyncio.timeout(100):
        await node.wait_until_leader()
        await node.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        for number in range(5):
            await node.execute("INSERT INTO t VALUES (?, randomblob(30000))", (number,))
        while node.epoch.value < FANOUT:
            await node.execute("UPDATE t SET b = randomblob(300) WHERE a = 3")
        made = (".beacon", ".last_snapshot", first_merged)
        while not all((log / name).exists() for name in made) or node._local.since_snapshot.log_epochs >= 5:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    async with cluster.join(can_lead=True, settings=lbc.NodeSettings(epoch_interval=0)) as node, asyncio.timeout(100):
        await node.wait_until_leader()
        await node.execute("DELETE FROM t WHERE a = 1")
        await node.execute("UPDATE t SET b = 'x' WHERE a = 2")
        system = dict(await node.read("SELECT * FROM _lbc"))
        await node.execute("CREATE TABLE u AS SELECT a FROM t")
    async with cluster.head() as head:
        rows = (await head.query("SELECT * FROM t")).rows
    return Written(log, compression, rows, system, json.loads((log / "cluster.json").read_text()))


def split(path: Path) -> tuple[dict[str, Any], bytes, bytes]:
    """The metadata as an object, the same as it is stored, and what follows; by nothing but the table."""
    body = path.read_bytes()
    magic, size = struct.unpack("<II", body[:8])
    assert magic == 0x184D2A50
    return json.loads(body[8 : 8 + size]), body[8 : 8 + size], body[8 + size :]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def assert_as_documented(value: dict[str, Any], heading: str) -> None:
    """`value` has exactly the documented members, in their order, with the documented types."""
    types = field_types(heading)
    assert list(value) == list(types)
    for name, kind in types.items():
        assert isinstance(value[name], TYPES[kind]), f"{name} is {value[name]!r}, documented as {kind}"


def test_objects_have_the_documented_members(written: Written) -> None:
    for path in [*written.snapshots, *written.epochs]:
        assert_as_documented(split(path)[0], "Metadata")
    assert_as_documented(written.identity, "Identity")
    assert_as_documented(json.loads((written.log / ".beacon").read_bytes()), "Beacon")
    authorities = sorted((written.log / "ca").iterdir())
    assert [path.name for path in authorities] == [f"{1:020}.json"]
    assert_as_documented(json.loads(authorities[0].read_bytes()), "Certificate authorities")


def test_the_system_table_is_as_documented(written: Written) -> None:
    types = field_types("In the database")
    assert types.keys() - written.system.keys() == {"request_generation"}  # no old requests here to forget
    assert written.system.keys() <= types.keys()
    assert all(isinstance(value, TYPES[types[name]]) for name, value in written.system.items())
    assert written.system["cluster_id"] == "007"


def test_hashes_and_the_chain_are_as_documented(written: Written) -> None:
    previous = sha256(written.snapshots[0].read_bytes())
    for path in written.epochs:
        metadata, text, stored = split(path)
        assert metadata["previous_sha256"] == previous
        assert metadata["stored_xxh3"] == xxhash.xxh3_64_hexdigest(stored)
        assert metadata["check"] == xxhash.xxh3_64_hexdigest(text[: text.rindex(b',"check":')])
        previous = sha256(path.read_bytes())
    first, *later = written.snapshots
    assert split(first)[0]["previous_sha256"] == ""
    assert later
    for path in later:
        assert split(path)[0]["previous_sha256"] == sha256(path.with_suffix(".wal").read_bytes())


def test_merged_epochs_are_as_documented(written: Written) -> None:
    metadata, text, stored = split(written.merged)
    own = {**field_types("Metadata"), **field_types("Merged epochs")}
    check = own.pop("check")
    assert list(metadata) == [*own, "check"]
    for name, kind in (own | {"check": check}).items():
        assert isinstance(metadata[name], TYPES[kind]), name
    assert written.merged.name == f"{metadata['first_epoch']:020}-{metadata['epoch']:020}.wal"
    first, *_, last = parts = written.epochs[metadata["first_epoch"] - 1 : metadata["epoch"]]
    of_parts = [split(path)[0] for path in parts]
    assert metadata["previous_sha256"] == split(first)[0]["previous_sha256"]
    assert metadata["last_sha256"] == sha256(last.read_bytes())
    assert metadata["last_sha256"] == split(written.epochs[metadata["epoch"]])[0]["previous_sha256"]
    assert metadata["nonce"] == metadata["last_sha256"][:32]
    assert metadata["transactions"] == sum(each["transactions"] for each in of_parts)
    assert metadata["stored_xxh3"] == xxhash.xxh3_64_hexdigest(stored)
    assert metadata["check"] == xxhash.xxh3_64_hexdigest(text[: text.rindex(b',"check":')])
    told = {"kind", "pages", "raw_size_bytes", "raw_sha256", "stored_xxh3", "check", *field_types("Merged epochs")}
    assert {name for name, value in of_parts[-1].items() if metadata[name] != value} <= told


@pytest.mark.usefixtures("shell_tools")
def test_merged_epochs_are_a_wal_that_leads_there(written: Written, tmp_path: Path) -> None:
    """By SQLite alone, from the snapshot of epoch 0."""
    if written.compression == "none":
        raw, start = split(written.merged)[2], split(written.snapshots[0])[2]
    else:
        decompress = ["zstd", "-dcq"]
        raw = subprocess.run([*decompress, written.merged], capture_output=True, check=True).stdout
        start = subprocess.run([*decompress, written.snapshots[0]], capture_output=True, check=True).stdout
    metadata, _, _ = split(written.merged)
    assert raw[16:24] == bytes.fromhex(metadata["last_sha256"])[:8]
    state = tmp_path / "state.db"
    state.write_bytes(start)
    state.with_name("state.db-wal").write_bytes(raw)
    subprocess.run(["sqlite3", state, "PRAGMA wal_checkpoint(TRUNCATE)"], capture_output=True, check=True)
    assert checksum(state.read_bytes(), metadata["page_size"]) == metadata["state_checksum"]


def test_markers_are_as_documented(written: Written) -> None:
    assert (written.log / ".last_snapshot").read_bytes() == written.snapshots[-1].stem.encode()
    assert len(written.snapshots[-1].stem) == 20


def checksum(content: bytes, page_size: int) -> str:
    """The state checksum as documented, for a database below 1 GiB."""
    value = 0
    for number, start in enumerate(range(0, len(content), page_size), 1):
        value ^= xxhash.xxh3_64_intdigest(content[start : start + page_size], seed=number)
    return f"{value:016x}"


@pytest.mark.usefixtures("shell_tools")
def test_the_recipe_reads_the_newest_state(written: Written, tmp_path: Path) -> None:
    ((_, recipe),) = blocks(FORMAT, "sh")
    script, state = tmp_path / "read-state.sh", tmp_path / "state.db"
    script.write_text(recipe)
    done = subprocess.run(["sh", script, written.log, state], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    metadata, _, stored = split(written.epochs[-1])
    assert checksum(state.read_bytes(), metadata["page_size"]) == metadata["state_checksum"]
    assert metadata["raw_sha256"] == sha256(stored) or written.compression == "zstd"
    connection = sqlite3.connect(state)
    assert connection.execute("SELECT * FROM t").fetchall() == written.rows
    assert connection.execute("SELECT value FROM _lbc WHERE key = 'epoch'").fetchall() == [(metadata["epoch"],)]
    connection.close()


@pytest.mark.usefixtures("shell_tools")
def test_zstd_reads_objects_as_they_are(written: Written) -> None:
    if written.compression == "none":
        assert "`zstd -d` cannot read such an object" in section(FORMAT, "Objects of the log")
        return
    raw = subprocess.run(["zstd", "-dcq", written.epochs[0]], capture_output=True, check=True).stdout
    assert sha256(raw) == split(written.epochs[0])[0]["raw_sha256"]
