"""`lbc demo`: a cluster of four processes that loses its leader and goes on."""

from littlebigcluster.cli.demo.story import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
