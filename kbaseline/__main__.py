"""Runs the command line with `python -m kbaseline`."""

from kbaseline.cli.launch import program

program()
