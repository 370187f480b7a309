"""Test applications on simulated clusters: virtual time, one seed, and every fault on demand."""

from littlebigcluster.testing.simulation import Member, Simulation, Weather, run

__all__ = ["Member", "Simulation", "Weather", "run"]
