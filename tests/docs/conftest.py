"""Programs of the system that the documents tell people to use."""

from __future__ import annotations

import os
import shutil
import warnings

import pytest

from tests import debian

PACKAGES = {"zstd": "zstd", "sqlite3": "sqlite3"}


@pytest.fixture(scope="session")
def shell_tools() -> None:
    """`zstd` and `sqlite3`, installed from Debian's packages if this is root. In CI they must be there."""
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    said = debian.install(missing)
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if not missing:
        return
    message = f"NOT TESTED with zstd and sqlite3 in a shell: install {' and '.join(missing)} {said[-500:]}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(message, stacklevel=1)
    pytest.skip(message)
