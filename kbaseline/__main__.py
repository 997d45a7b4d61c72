"""`python -m kbaseline` is the command line."""

from kbaseline.cli import main

main()
