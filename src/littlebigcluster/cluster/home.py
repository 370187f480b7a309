"""Where a node lives: on one event loop, from its join to its end."""

from __future__ import annotations

import asyncio

from littlebigcluster.errors import LbcError
from littlebigcluster.threads import check_loop


class Home:
    """What every use of a `Node` begins with."""

    _loop: asyncio.AbstractEventLoop
    _ended: bool

    def _check_home(self) -> None:
        """Raises LbcError when the node has stopped, RuntimeError in another thread or on another event loop."""
        if self._ended:
            raise LbcError("the node has stopped")
        check_loop(self._loop)
