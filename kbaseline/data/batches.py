"""`ImageBatches`: a split as a Keras dataset of uint8 batches, sliced on the host in a seeded order."""

import math
import mmap
from typing import Any

import jax
import keras
import numpy as np

from kbaseline.errors import DataError

RESIDENT_BYTES = 512 * 2**20
"""About how much of a memory map stays in this process' memory; the system's own cache may hold all of it."""

HUGE_PAGE = 2 * 2**20
"""Bytes that reading one image may map."""


class ImageBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches for `model.fit`, `model.evaluate` and `model.predict`.

    Made under a `keras.distribution.DataParallel`, each batch is padded to a multiple of its devices, and of several
    processes each slices only its own part of a batch; batches and their order are those of one device.

    Args:
        images: uint8 `(number, height, width, 3)`; a memory map is read batch by batch.
        labels: int `(number,)`, or None for prediction.
        class_weights: float32 `(classes,)`, the weight of an image in the loss by its label; None weighs nothing.
        batch_size: images a batch.
        shuffle: a new order every epoch, fixed by `seed` and the epoch's number; the last partial batch is dropped,
            so that BatchNorm never sees a tiny one and the step is compiled once.
        seed: fixes the orders.
        pad: repeat the last image until the last batch is full, so that prediction is compiled once;
            `unpadded` cuts the result to `number`.

    Raises:
        DataError: shuffling fewer images than one batch holds.
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
        """Makes `model.fit`, which draws a new order as it begins, go on with the epoch after this one.

        Args:
            epoch: counted from 0.
            skipped: leave out this many batches at the beginning of every epoch.
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
        """Batch `index`: uint8 `(batch, height, width, 3)`, and if any int32 labels and float32 weights `(batch,)`."""
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
        """Unmaps what was read, after every so many images, so that memory does not grow with the data."""
        self._read += count
        mapped = getattr(getattr(self.images, "stored", self.images), "_mmap", None)
        if mapped is None or self.images.nbytes <= RESIDENT_BYTES or self._read * HUGE_PAGE < RESIDENT_BYTES:
            return
        self._read = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def unpadded(self, rows: np.ndarray) -> np.ndarray:
        """Cuts what a network gave for all padded batches to one row an image."""
        size = self.batch_size + -self.batch_size % self._devices
        kept = rows.reshape(len(self), size, *rows.shape[1:])[:, : self.batch_size]
        return kept.reshape(-1, *rows.shape[1:])[: len(self.images)]

    def on_epoch_end(self) -> None:
        """Draws the next epoch's order."""
        self.epoch += 1
        self._order = self._next_order()
