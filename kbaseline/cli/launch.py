"""The program `kbaseline`: the command, in a process whose memory comes in huge pages where those must be asked for."""

import sys

from kbaseline.cli.main import main
from kbaseline.devices.memory import ask_for_huge_pages


def program() -> None:
    """Runs the command that `sys.argv` holds, and ends the process."""
    if sys.argv[1:] and not {"-h", "--help", "--version"}.intersection(sys.argv):
        ask_for_huge_pages()
    main()
