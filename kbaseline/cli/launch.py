"""The program `kbaseline`: the command, in a process that started with the memory XLA needs."""

import sys

from kbaseline.cli.main import main
from kbaseline.devices.memory import start_with_kept_memory


def program() -> None:
    """Runs the command that `sys.argv` holds, and ends the process."""
    if sys.argv[1:] and not {"-h", "--help", "--version"}.intersection(sys.argv):
        start_with_kept_memory()
    main()
