"""The formal model of the protocol, searched for violations of its invariants.

python -m tests.model             all of it: what must hold, and what must be refuted
python -m tests.model NO_FENCE    the counterexample of one broken variant, as a story
"""

from __future__ import annotations

import sys
import time

from tests.model.checker import BROKEN, SOUND, WIDER, Unavailable, require, search

STORY_LINES = 40


def main(arguments: list[str]) -> int:
    variants = [broken for broken in BROKEN if not arguments or broken.define in arguments]
    if not variants:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        require()
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 2
    failed = False
    for bounds in () if arguments else SOUND + WIDER:
        began = time.monotonic()
        result = search(bounds)
        failed |= result.violated is not None
        print(f"{result.violated or 'holds'}: {bounds}; {result.states:,} states, {time.monotonic() - began:.0f} s")
        print("".join(f"    {line}\n" for line in result.story[-STORY_LINES:]), end="", flush=True)
    for broken in variants:
        result = search(broken.bounds, broken.define)
        failed |= result.violated != broken.invariant
        print(f"{broken.define} is refuted by {result.violated} after {result.states:,} states", flush=True)
        if arguments:
            print("".join(f"    {line}\n" for line in result.story[-STORY_LINES:]), end="")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
