"""The command line: a thin skin over the library, a module for each kind of command.

Everything heavy is imported inside the commands: `--help` must be instant, and importing Keras fixes its backend.
"""

from kbaseline.cli.main import main

__all__ = ["main"]
