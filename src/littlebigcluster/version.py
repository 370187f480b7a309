"""The version of this library, for everything that has to know it."""

__version__ = "0.1.0"
