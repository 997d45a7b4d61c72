"""The faster layers of the kind of device that JAX computes on."""

import keras

from kbaseline.models.cpu import adapt_to_cpu
from kbaseline.models.gpu import adapt_to_gpu


def adapt_to_device(model: keras.Model) -> int:
    """Computes layers of a model faster where a way is known; see `adapt_to_cpu` and `adapt_to_gpu`.

    `kbaseline.models.cpu.restore` undoes it. Compile the model afterwards.

    Returns:
        The number of layers changed.

    Raises:
        InputError: see `adapt_to_gpu`.
    """
    return adapt_to_cpu(model) + adapt_to_gpu(model)
