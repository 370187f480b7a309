"""LittleBigCluster: cluster applications on nothing but an object store."""

__version__ = "0.1.0"
