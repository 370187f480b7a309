"""Whole clusters in bad weather. Every scenario ends with the same checker: `tests.scenarios.checker`."""
