"""Optional packages: one that is missing is named together with the extra that brings it."""

import importlib.util

from kbaseline.errors import InputError


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
