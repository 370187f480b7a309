"""What cannot be tested on this machine is said aloud."""

from __future__ import annotations

import warnings


def warn(message: str) -> None:
    """As a warning that does not fail the test, though all others do."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(message, stacklevel=2)
