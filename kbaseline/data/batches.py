"""`ImageBatches`: a split as a Keras dataset of uint8 batches, in a seeded order."""

import math
import mmap
from typing import Any

import jax
import keras
import numpy as np

from kbaseline.errors import DataError

RESIDENT_BYTES = 512 * 2**20
"""Approximate limit on the mapped memory of this process; the system's page cache may hold all of the file."""

HUGE_PAGE = 2 * 2**20
"""Bytes that may be mapped when one image is read."""


class ImageBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches for `model.fit`, `model.evaluate` and `model.predict`.

    If a `keras.distribution.DataParallel` is active, each batch is padded to a multiple of the number of devices, and
    each process reads only its own part of a batch. Batches and their order are the same as on one device.

    Args:
        images: uint8 `(number, height, width, 3)`; a memory map is read batch by batch.
        labels: int `(number,)`, or None for prediction.
        class_weights: float32 `(classes,)`, the weight in the loss for images of each label; None for no weights.
        batch_size: images per batch.
        shuffle: use a new order every epoch, determined by `seed` and the epoch number, and drop the last partial
            batch, so that BatchNorm gets no tiny batch and the step is compiled once.
        seed: fixes the order of every epoch.
        pad: repeat the last image until the last batch is full, so that prediction is compiled once;
            `unpadded` cuts the result to `number`.

    Raises:
        DataError: `shuffle` with fewer images than one batch.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        batch_size: int = 64,
        *,
        class_weights: np.ndarray | None = None,
        shuffle: bool = False,
        seed: int = 0,
        pad: bool = False,
    ) -> None:
        super().__init__()
        if shuffle and len(images) < batch_size:
            raise DataError(
                f"train: {len(images)} images do not fill one batch of {batch_size}; set data.batch_size to "
                f"{max(2, len(images) // 4)} or give more images."
            )
        self.images, self.labels, self.batch_size, self.class_weights = images, labels, batch_size, class_weights
        self.shuffle, self.seed, self.pad = shuffle, seed, pad
        spread = keras.distribution.distribution()
        self._devices: int = 1 if spread is None else spread.num_model_replicas
        self._part: int = 0 if spread is None else jax.process_index()
        self._parts: int = 1 if spread is None else jax.process_count()
        self.epoch = self._skipped = self._read = 0
        self._order = self._next_order()

    def go_to(self, epoch: int, skipped: int = 0) -> None:
        """Sets the epoch. `model.fit` advances by one epoch when it begins, so it continues with `epoch + 1`.

        Args:
            epoch: epoch number, from 0.
            skipped: number of batches to skip at the beginning of every epoch.
        """
        self.epoch, self._skipped = epoch, skipped
        self._order = self._next_order()

    def _next_order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.images))
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.images))

    def __len__(self) -> int:
        rounded = math.floor if self.shuffle else math.ceil
        return rounded(len(self.images) / self.batch_size) - self._skipped

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Batch `index`: uint8 `(batch, height, width, 3)`, then int32 labels and float32 weights `(batch,)` if any."""
        begin = (index + self._skipped) * self.batch_size
        chosen = self._order[begin : begin + self.batch_size]
        missing = self.batch_size - len(chosen) if self.pad else 0
        missing += -(len(chosen) + missing) % self._devices
        part = (len(chosen) + missing) // self._parts
        chosen = np.pad(chosen, (0, missing), mode="edge")[self._part * part : (self._part + 1) * part]
        images = np.ascontiguousarray(self.images[chosen])
        self._let_go(len(chosen))
        if self.labels is None:
            return (images,)
        labels = self.labels[chosen]
        return (images, labels) if self.class_weights is None else (images, labels, self.class_weights[labels])

    def _let_go(self, count: int) -> None:
        """Unmaps pages at regular intervals, so that memory does not grow with the size of the data."""
        self._read += count
        mapped = getattr(getattr(self.images, "stored", self.images), "_mmap", None)
        if mapped is None or self.images.nbytes <= RESIDENT_BYTES or self._read * HUGE_PAGE < RESIDENT_BYTES:
            return
        self._read = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def unpadded(self, rows: np.ndarray) -> np.ndarray:
        """Removes padding from predictions for all batches; returns one row per image."""
        size = self.batch_size + -self.batch_size % self._devices
        kept = rows.reshape(len(self), size, *rows.shape[1:])[:, : self.batch_size]
        return kept.reshape(-1, *rows.shape[1:])[: len(self.images)]

    def on_epoch_end(self) -> None:
        """Draws the order of the next epoch."""
        self.epoch += 1
        self._order = self._next_order()
