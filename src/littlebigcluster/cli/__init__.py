"""The `lbc` command."""

from littlebigcluster.cli.app import main

__all__ = ["main"]
