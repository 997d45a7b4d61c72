"""The command line: click commands that read options, call the library and print.

Heavy imports are inside the commands: `--help` must be instant, and importing Keras fixes its backend.
"""

from kbaseline.cli.main import main

__all__ = ["main"]
