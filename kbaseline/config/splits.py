"""What the splits of a data set are called: in code, by other people, and on the screen."""

SPLITS = ("train", "valid", "test")
"""Every split, in the order in which images are numbered, decoded and listed."""

ALL = "all"
"""All images of a source, whatever split they are in."""

ALIASES = {"train": "train", "validation": "valid", "valid": "valid", "val": "valid", "test": "test"}
"""What other people call a split, in lower case -> its name here; of two aliases the first is preferred."""

DISPLAY_NAMES = {"train": "train", "valid": "validation", "test": "test"}
"""Split -> how to write it in a sentence or a heading."""
