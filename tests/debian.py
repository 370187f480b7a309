"""Programs from Debian's packages, for tests that need them, if this is root."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_SECONDS = 300.0


def install(packages: Sequence[str]) -> str:
    """What apt-get says; nothing where it may not be used. One test process at a time: the others wait, as apt-get does
    not for the lists of packages."""
    said = ""
    if packages and shutil.which("apt-get") and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", *packages]
        with Path(tempfile.gettempdir(), "lbc-tests-apt.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for arguments in (["update"], install):
                done = subprocess.run(
                    ["apt-get", *arguments], env=environment, check=False, text=True, timeout=_SECONDS,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )  # fmt: skip
                said = done.stdout
    return said
