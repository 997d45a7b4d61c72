"""A source (`tfds:`, `folder:`, `csv:`, `digits`, arrays) becomes `ImageData`: uint8 images, labels, names, splits."""

from kbaseline.data.image_data import ImageData
from kbaseline.data.prepare import Split

__all__ = ["ImageData", "Split"]
