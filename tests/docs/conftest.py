"""Programs of the system that the documents tell people to use."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings

import pytest

PACKAGES = {"zstd": "zstd", "sqlite3": "sqlite3"}


@pytest.fixture(scope="session")
def shell_tools() -> None:
    """`zstd` and `sqlite3`, installed from Debian's packages if this is root. In CI they must be there."""
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing and shutil.which("apt-get") and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *missing]):
            subprocess.run(command, check=False, capture_output=True, env=environment, timeout=300)
        missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if not missing:
        return
    message = f"NOT TESTED with zstd and sqlite3 in a shell: install {' and '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(message, stacklevel=1)
    pytest.skip(message)
