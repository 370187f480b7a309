"""The commands of `lbc`, by what they are about. Importing them registers them."""

from littlebigcluster.cli.commands import demo as demo
from littlebigcluster.cli.commands import doctor as doctor
from littlebigcluster.cli.commands import moving as moving
from littlebigcluster.cli.commands import nodes as nodes
from littlebigcluster.cli.commands import past as past
from littlebigcluster.cli.commands import state as state
