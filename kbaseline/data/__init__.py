"""A source (`tfds:`, `folder:`, `csv:`, `digits`, arrays) becomes `ImageData`: uint8 images, labels, names, splits."""

from kbaseline.data.image_data import ImageData, Split

__all__ = ["ImageData", "Split"]
