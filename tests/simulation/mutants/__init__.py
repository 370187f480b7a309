"""Broken variants of the library, each of which the simulation must find out. A mutant that lives is a hole in it."""
