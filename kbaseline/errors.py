"""The exceptions a user can meet.

    KBaselineError                 everything kbaseline raises on purpose
    ├── InputError                 what was asked cannot be done; exit code 2
    │   ├── ConfigError            a configuration key or value
    │   ├── DataError              a data source, image, label or split
    │   └── ModelError             a backbone, its weights or a saved model
    └── RunError                   what was asked failed on the way; exit code 1
        ├── DownloadError          data or weights could not be fetched
        └── LRFinderError          the sweep gave no usable curve

Every message is one line that names the thing, its value, the rule and the remedy.
"""

import difflib
import importlib.util
from collections.abc import Iterable

LONGEST = 1200
"""Characters of a message."""


class KBaselineError(Exception):
    """Base of every error kbaseline raises on purpose; `exit_code` is what the command line returns.

    Names and values in a message come from anywhere; it stays one line, and one that can be read, whatever they hold.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        # Only what breaks a line is replaced: a path may hold two blanks.
        line = " ".join(message.splitlines())
        # Cut in the middle: the thing stands at the beginning, the remedy at the end.
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 3 :]}")


class InputError(KBaselineError):
    """What was asked cannot be done: the argument, not the run, is at fault."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key is unknown, or its value breaks a rule."""


class DataError(InputError):
    """A data source, image, label or split breaks a rule."""


class ModelError(InputError):
    """A backbone, its weights or a saved model cannot be used."""


class RunError(KBaselineError):
    """A run that was asked for correctly failed on the way."""


class DownloadError(RunError):
    """Data or weights could not be fetched."""


class LRFinderError(RunError):
    """The learning-rate sweep gave no usable curve."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` when `wrong` is close to one of `known`, else an empty string."""
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_line(error: BaseException, most: int = 160) -> str:
    """What an error says, in one line of at most `most` characters; its kind where it says nothing.

    Of one of the system's, the system's words alone: the file it is about stands in the message already.
    """
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(said.split())[:most] or type(error).__name__


def with_kind(error: BaseException, most: int = 160) -> str:
    """`ValueError: what it says`, for an error of somebody else's code."""
    return f"{type(error).__name__}: {one_line(error, most)}"


def listed(names: Iterable[str], most: int = 12) -> str:
    """`'cat', 'dog' and 3 more`: names for a message, at most `most` of them, each of at most 40 characters."""
    every = list(names)
    shown = ", ".join(repr(name[:40]) for name in every[:most])
    return f"{shown} and {len(every) - most} more" if len(every) > most else shown


def require(what: str, extra: str, *modules: str) -> None:
    """Refuses what needs a package that is not installed, before anything long is begun.

    Args:
        what: needs it, for the message.
        extra: of kbaseline, which brings it.
        modules: the packages, by the names they are imported by.

    Raises:
        InputError: one is missing.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise InputError(f"{what}: needs the package {module}; run `pip install 'kbaseline[{extra}]'`.")
