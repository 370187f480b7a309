"""What writers are told whose epoch did not become part of the log, as far as anybody knows."""

from __future__ import annotations

from littlebigcluster.epochs import Forgotten, Lost
from littlebigcluster.errors import Fenced, OutcomeUnknown


def refusal(outcome: Lost | Forgotten, epoch: int) -> Fenced | OutcomeUnknown:
    """An error of its own for each of them."""
    if isinstance(outcome, Lost):
        return Fenced(f"another node has created epoch {epoch}; the write is not written")
    return OutcomeUnknown(f"epoch {epoch} was deleted as too old before this node knew its fate", epoch=epoch)
