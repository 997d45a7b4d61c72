"""Paths as users write them: `~` is the home folder."""

from pathlib import Path

from kbaseline.errors import ConfigError


def expand_home(path: Path | str, remedy: str = "write the path in full") -> Path:
    """A path with the home folder in place of its `~`; that of an unknown user stays as it is, as in a shell.

    Args:
        path: what the user wrote.
        remedy: what helps besides setting HOME, for the message.

    Raises:
        ConfigError: it begins with `~/`, and this user has no home (`docker run --user`).
    """
    path = Path(path)
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):
        if path.parts[0] == "~":
            raise ConfigError(f"{str(path)!r}: HOME is not set, so there is no '~'; set HOME, or {remedy}.") from None
        return path
