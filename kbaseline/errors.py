"""The exceptions that kbaseline raises, and helpers for their messages.

    KBaselineError                 everything kbaseline raises on purpose
    ├── InputError                 an argument or setting is invalid; exit code 2
    │   ├── ConfigError            a configuration key or value
    │   ├── DataError              a data source, image, label or split
    │   └── ModelError             a backbone, its weights or a saved model
    └── RunError                   a valid request failed while it ran; exit code 1
        ├── DownloadError          data or weights could not be downloaded
        └── LRFinderError          the sweep gave no usable curve

Every message is one line that names the thing, its value, the rule and the remedy. An `InputError` is also a
`ValueError`: code that knows nothing of kbaseline can catch it.
"""

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterable
from typing import Any

LONGEST = 1200
"""Maximum number of characters in a message."""


class KBaselineError(Exception):
    """Base of every error kbaseline raises on purpose; `exit_code` is what the command line returns.

    A message may quote names and values from any source. It is always one line of bounded length.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        # Replace line breaks only: a path may contain two spaces.
        line = " ".join(message.splitlines())
        # Cut in the middle: the subject comes first and the remedy last.
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 3 :]}")


class InputError(KBaselineError, ValueError):
    """An argument or setting is invalid; the run never started."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key is unknown, or its value breaks a rule."""


class DataError(InputError):
    """A data source, image, label or split breaks a rule."""


class ModelError(InputError):
    """A backbone, its weights or a saved model cannot be used."""


class RunError(KBaselineError):
    """A valid request failed while it ran."""


class DownloadError(RunError):
    """Data or weights could not be downloaded."""


class LRFinderError(RunError):
    """The learning-rate sweep gave no usable curve."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` when `wrong` is close to one of `known`, else an empty string."""
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def checked_number(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> float:
    """An argument as a float, checked.

    Args:
        name: the argument, for the message.
        value: what was given: a Python or NumPy number, or an array with one element and no axes.
        rule: the values it may have, for the message: "must be" and then these words.
        holds: whether a number obeys the rule; NaN never does.

    Raises:
        InputError: it is no number, or breaks the rule.
    """
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) or not holds(number):
        raise InputError(f"{name} must be {rule}; got {value!r}.")
    return number


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """An argument as an int. Raises `InputError` if it is no whole number or below `least`."""
    rule = f"a whole number of at least {least}"
    return int(checked_number(name, value, rule, lambda number: number.is_integer() and number >= least))


def one_line(error: BaseException, most: int = 160) -> str:
    """An error's message in one line of at most `most` characters, or its type if the message is empty.

    For an `OSError`, the system's reason without the file name, which the caller's message names already.
    """
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split())[:most] or type(error).__name__


def with_kind(error: BaseException, most: int = 160) -> str:
    """`ValueError: its message`, for an error raised by other code."""
    return f"{type(error).__name__}: {one_line(error, most)}"


def listed(names: Iterable[str], most: int = 12) -> str:
    """`'cat', 'dog' and 3 more`: at most `most` names for a message, each cut to 40 characters."""
    every = list(names)
    shown = ", ".join(repr(name[:40]) for name in every[:most])
    return f"{shown} and {len(every) - most} more" if len(every) > most else shown


def require(what: str, extra: str, *modules: str) -> None:
    """Checks that optional packages are installed, before any long work starts.

    Args:
        what: the feature that needs them, for the message.
        extra: the extra of kbaseline that installs them.
        modules: their import names.

    Raises:
        InputError: a package is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise InputError(f"{what}: needs the package {module}; run `pip install 'kbaseline[{extra}]'`.")
