"""`python -m littlebigcluster` is `lbc`."""

from littlebigcluster.cli import main

main()
