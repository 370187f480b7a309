"""Nodes in real processes on a real store, and everything that can happen to them:
`python -m tests.chaos --seconds 60 --seed N`.

Which faults come when follows from the seed; what they meet does not, so a run cannot be repeated exactly. When
something is wrong the logs of the nodes and the history are kept. Exit code 0: nothing was wrong; 1: something was;
3: the store cannot be had on this machine, or in CI something else that should be there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.chaos.run import Run
from tests.chaos.site import site
from tests.servers import Unavailable

PRIVATE = "LBC_CHAOS_PRIVATE"
NOT_TESTED = 3
ENDED = 130


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long there are faults")
    parser.add_argument("--seed", type=int, default=None, help="decides which faults come when; default: any")
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--store", choices=["ceph", "ministack", "directory"], default="ceph")
    parser.add_argument("--rate", type=float, default=30, help="writes per second, on average")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.randrange(1 << 31)
    _mount_in_private([*sys.argv[1:], "--seed", str(arguments.seed)])
    return asyncio.run(_run(arguments))


def _mount_in_private(arguments: list[str]) -> None:
    """Start again where mounts, names of network namespaces among them, go with this process, however it ends."""
    if os.environ.get(PRIVATE) or os.geteuid() != 0 or shutil.which("unshare") is None:
        return
    script = 'mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        os.environ[PRIVATE] = "1"
        os.execvp("unshare", [*command, sys.executable, "-m", "tests.chaos", *arguments])


async def _run(arguments: argparse.Namespace) -> int:
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    directory = Path(tempfile.mkdtemp(prefix="lbc-chaos-"))
    events = (directory / "faults.log").open("w", buffering=1)
    kept = False
    try:
        print(f"seed {arguments.seed}: {arguments.nodes} nodes on {arguments.store}, {arguments.seconds:g} s of faults")
        async with site(arguments.store, arguments.nodes, directory, arguments.seed) as made:
            for line in made.not_tested:
                print(line)
            if made.network is None and made.ought_to_be_tested and os.environ.get("CI") == "true":
                return NOT_TESTED
            run = Run(
                made, seconds=arguments.seconds, seed=arguments.seed, rate=arguments.rate,
                say=lambda text: print(f"{_wall()} {text}", file=events), live=_Live(),
            )  # fmt: skip
            kept = True
            try:
                await run.run()
            except Exception as error:
                traceback.print_exc()
                run.problems.append(f"the test itself failed: {error!r}")
            run.keep(directory)
            print("\n".join(await run.summary()))
        for problem in run.problems:
            print(f"WRONG: {problem[:2000]}")
        kept = bool(run.problems)
        print("FAILED" if kept else "nothing acknowledged was lost, nothing refused appeared, no read saw too little")
        return 1 if kept else 0
    except Unavailable as error:
        print(f"NOT TESTED: {error}")
        return NOT_TESTED
    except asyncio.CancelledError:
        print("ended before its time; what was made is removed")
        kept = False
        return ENDED
    finally:
        events.close()
        if kept:
            print(f"logs and history: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _wall() -> str:
    now = time.time()
    return f"{time.strftime('%H:%M:%S', time.localtime(now))}.{int(now % 1 * 1000):03d}"


class _Live:
    """One line that changes on a terminal, one every five seconds elsewhere."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, text: str) -> None:
        if sys.stdout.isatty():
            print(f"\r\033[K{text[:180]}", end="", flush=True)
        elif time.monotonic() - self._said > 5:
            self._said = time.monotonic()
            print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
