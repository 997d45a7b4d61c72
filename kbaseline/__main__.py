"""`python -m kbaseline` is the command line."""

from kbaseline.cli.launch import program

program()
