"""Trials: listings, and deleting."""

from __future__ import annotations

from littlebigcluster.store.probe import Broken

from .bench import Bench, Doubtful, all_of, created

LONG_LISTING = 1_010
"""S3 and GCS list 1,000 at a time."""

AT_ONCE = 32


async def lists(bench: Bench) -> str:
    keys = [f"list/{number:020}.wal" for number in range(30)]
    for number, key in enumerate(keys):
        await created(bench, key, key.encode())
        client = bench.clients[number % len(bench.clients)]
        after = keys[number - 1] if number else ""
        if [info.key for info in await client.list("list/", after)] != [key]:
            raise Broken(
                f"an object was not alone behind its predecessor in a listing just after it was created ({key})"
            )
    for client in bench.clients:
        found = await client.list("list/")
        if [(info.key, info.size_bytes) for info in found] != [(key, len(key)) for key in keys]:
            raise Broken(f"a listing of {len(keys)} objects showed {len(found)}, or other sizes or another order")
        if [info.key for info in await client.list("list/0000000000000000001", keys[14])] != keys[15:20]:
            raise Broken("a listing by the beginning of a name, and after another, showed something else")
    await bench.first.delete(keys[::2])
    shown = [{info.key for info in await client.list("list/")} for client in bench.clients]
    if any(not set(keys[1::2]) <= each for each in shown):
        raise Broken("after some objects were deleted, others were missing in a listing")
    if any(each != set(keys[1::2]) for each in shown):
        raise Doubtful("objects are still listed just after they were deleted")
    return f"{len(keys)} objects, each listed as soon as it was there, and not when it was deleted"


async def long_lists(bench: Bench) -> str:
    keys = [f"long/{number:05}" for number in range(LONG_LISTING)]
    try:
        for start in range(0, len(keys), AT_ONCE):
            await all_of(bench.first.put(key, b"") for key in keys[start : start + AT_ONCE])
        for after in ("", keys[3], keys[-3]):
            expected = [key for key in keys if key > after]
            if [info.key for info in await bench.clients[-1].list("long/", after)] != expected:
                raise Broken(f"a listing of {len(expected)} objects was not complete")
    finally:
        # By name: a store that cannot list them all could not be cleaned up by listing.
        await bench.first.delete(keys)
    if left := await bench.first.list("long/"):
        raise Doubtful(f"{len(left)} of {len(keys)} objects are still listed just after they were deleted")
    return f"{len(keys):,} objects listed and deleted"


async def deletes(bench: Bench) -> str:
    await bench.first.delete(["absent", "not/there"])
    for number in range(5):
        await created(bench, "deleted", b"%d" % number)
        await bench.all_get("deleted")  # whoever keeps in mind that it is there, errs from here on
        await bench.first.delete(["deleted", "absent"])
        await bench.clients[-1].delete(["deleted"])
        if any(found is not None for found in await bench.all_get("deleted")):
            raise Doubtful("an object can still be read just after it was deleted")
    return "gone at once; again and absent ones without an error; the key can be created anew"
