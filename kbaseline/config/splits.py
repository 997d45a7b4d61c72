"""Names of splits: in code, in other people's folders and tables, and on the screen."""

import re
from collections.abc import Iterable

SPLITS = ("train", "valid", "test")
"""Every split, in the order in which images are numbered, decoded and listed."""

ALL = "all"
"""All images of a source, whatever split they are in."""

ALIASES = {"train": "train", "validation": "valid", "valid": "valid", "val": "valid", "test": "test"}
"""TFDS' names of a split, in lower case -> its name here; of two aliases the first is preferred."""

DISPLAY_NAMES = {"train": "train", "valid": "validation", "test": "test"}
"""Split -> how to write it in a sentence or a heading."""

_MEANINGS = {
    **dict.fromkeys(("train", "training", "trn"), ("train",)),
    **dict.fromkeys(("valid", "validation", "validate", "validating", "val", "dev", "development"), ("valid",)),
    **dict.fromkeys(("test", "testing", "tst"), ("test",)),
    **dict.fromkeys(("eval", "evaluation", "evaluate", "evaluating", "publictest"), ("valid", "test")),
    **dict.fromkeys(("holdout", "privatetest"), ("test", "valid")),
}
"""Word -> the splits it may mean; the second where another name means the first already."""

_FILLER = (
    r"(?:sub)?sets?|data(?:base|sets?)?|images?|imgs?|photos?|pictures?|pics?|splits?|folders?|dirs?|files?|samples?"
)


def named_splits(names: Iterable[str], *, loosely: bool = False) -> dict[str, str]:
    """Which names mean a split, as people write them: `Training`, `test_set`, `val2017`, `images-dev`, `eval`.

    Args:
        names: of folders side by side, or of values in one column.
        loosely: other words may stand beside the one that means a split, as in `cifar10_train`.

    Returns:
        Name -> `train`, `valid` or `test`, in the order of `names`; names that mean none are left out.
    """
    meanings = {name: found for name in names if (found := _meanings(name, loosely))}
    chosen = {name: found[0] for name, found in meanings.items() if len(found) == 1}
    for name, found in meanings.items():
        free = [split for split in found if split not in chosen.values()]
        if name not in chosen and free:
            chosen[name] = free[0]
    return {name: chosen[name] for name in meanings if name in chosen}


def is_container(name: str) -> bool:
    """Whether a folder's name says only that it holds images: `images`, `data`, `dataset`."""
    words = _words(name)
    return bool(words) and not _telling(words)


def _meanings(name: str, loosely: bool) -> tuple[str, ...]:
    telling = _telling(_words(name))
    known = [word for word in telling if word in _MEANINGS]
    return _MEANINGS[known[0]] if len(known) == 1 and (loosely or len(telling) == 1) else ()


def _words(name: str) -> list[str]:
    """The words of a name in lower case, `TestSet` being two; numbers are no words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    joined = re.sub(r"(?:hold|held)[\W_]*out", "holdout", spaced)
    joined = re.sub(r"(public|private)[\W_]*test", r"\1test", joined)
    return re.findall(r"[^\W\d_]+", joined)


def _telling(words: Iterable[str]) -> list[str]:
    """Without what says only that there are images, alone or at a word's end as in `trainset`."""
    kept = []
    for word in words:
        bare = word if word in _MEANINGS else re.sub(f"(?:{_FILLER})$", "", word)
        if bare:
            kept.append(bare if bare in _MEANINGS else word)
    return kept
