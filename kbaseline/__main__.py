"""Runs the command line with `python -m kbaseline`."""

from kbaseline.cli import main

main()
