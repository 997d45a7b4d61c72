"""kbaseline: a strong image-classification baseline in one command or fifteen lines, in Keras 3 on JAX.

Importing this package imports neither Keras nor JAX. It sets Keras' backend to JAX unless `KERAS_BACKEND` is set, and
registers kbaseline's layers for `keras.models.load_model`, in whichever order the two are imported.
"""

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from kbaseline.baseline import resume_run, run_baseline
    from kbaseline.commands.audit import audit_images
    from kbaseline.data import ImageData
    from kbaseline.feature_extraction import features
    from kbaseline.learner import Learner
    from kbaseline.lr_finder import LRFinder
    from kbaseline.optimizer import LayerwiseAdamW
    from kbaseline.runs.record import BaselineResult
    from kbaseline.runs.run import load
    from kbaseline.schedules import OneCycle
    from kbaseline.transforms import RandomTransforms
    from kbaseline.tta import tta_predict

__version__ = "0.1.0"

_HOME = {
    "BaselineResult": "runs.record",
    "ImageData": "data",
    "LRFinder": "lr_finder",
    "LayerwiseAdamW": "optimizer",
    "Learner": "learner",
    "OneCycle": "schedules",
    "RandomTransforms": "transforms",
    "audit_images": "commands.audit",
    "features": "feature_extraction",
    "load": "runs.run",
    "resume_run": "baseline",
    "run_baseline": "baseline",
    "tta_predict": "tta",
}

__all__ = [
    "BaselineResult",
    "ImageData",
    "LRFinder",
    "LayerwiseAdamW",
    "Learner",
    "OneCycle",
    "RandomTransforms",
    "audit_images",
    "features",
    "load",
    "resume_run",
    "run_baseline",
    "tta_predict",
]

_SERIALIZABLE = ("schedules", "transforms", "models.backbones", "optimizer")
"""Modules with classes that a saved model may contain."""


def __getattr__(name: str) -> Any:
    """Imports a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _register() -> None:
    """Registers kbaseline's classes with Keras; warns if Keras uses another backend."""
    import keras

    if keras.backend.backend() != "jax":
        warnings.warn(
            f"kbaseline is tested only with Keras' JAX backend, but Keras is using {keras.backend.backend()!r}; "
            "restart this process (in a notebook, the kernel) and set KERAS_BACKEND=jax before Keras is imported.",
            stacklevel=2,
        )
    for module in _SERIALIZABLE:
        importlib.import_module(f"{__name__}.{module}")


class _AfterKeras(importlib.abc.MetaPathFinder):
    # Keras finds custom classes only after their modules are imported, but importing them here would load Keras for
    # `--help`. So this finder runs `_register` once, right after Keras is first imported.
    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == "keras" else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: "ModuleType") -> None:
                run(module)
                # Not earlier: some libraries only look for the spec of Keras and never import it.
                sys.meta_path.remove(_AfterKeras)
                _register()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


if not os.environ.get("KERAS_BACKEND"):  # an empty one is none to Keras
    os.environ["KERAS_BACKEND"] = "jax"
if "keras" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AfterKeras)
