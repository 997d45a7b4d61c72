"""A source (`tfds:`, `folder:`, `digits`, arrays) becomes `ImageData`: uint8 images, labels, class names, splits."""

from kbaseline.data.image_data import ImageData, Split

__all__ = ["ImageData", "Split"]
