"""The command line: click commands that read options, call the library and print.

Heavy imports are inside the commands: `--help` must be fast, and the backend must be set before Keras is imported.
"""

from kbaseline.cli.main import main

__all__ = ["main"]
