"""`python -m kbaseline` is the command line."""

from kbaseline.cli.program import program

program()
