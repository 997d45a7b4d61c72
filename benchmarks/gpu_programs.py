"""Compiles a run's programs for a GPU that is not there, and counts what they consist of.

    python benchmarks/gpu_programs.py                        # a table for the terminal, a quarter of an hour on a CPU
    python benchmarks/gpu_programs.py --program head         # one of the programs
    python benchmarks/gpu_programs.py --write docs/gpu.md    # puts the table between that page's marks

Needs no GPU and no driver, but JAX 0.11 or later and its CUDA plugin of the same version: `pip install --no-deps
jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION`. Nothing runs, so there are no times; and nothing is tuned, so the
GPU itself may compute convolutions and products by other kernels.

A target is XLA's description of a GPU. The XLA project publishes such files, under the Apache License 2.0, in
openxla/xla, xla/backends/gpu/target_config/specs; `h200.txtpb` beside this program is one of them.
"""

import kbaseline  # noqa: F401 - first: it chooses Keras' backend

# isort: split

import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import jax
import keras
import marked
import numpy as np
from jax.experimental import topologies
from speed.measure import table
from speed.roofline import traffic
from speed.training import SOURCE, classifier

from kbaseline.devices.environment import versions
from kbaseline.devices.xla import start_jax, with_precision
from kbaseline.models.cpu import restore
from kbaseline.models.gpu import SWITCH, is_switched_on, replace_layers
from kbaseline.tta import _Parts

HERE = Path(__file__).parent
VIEWS = tuple(range(8))

Program = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function to compile, and its arguments."""


def training_step(model: keras.Model, batch: int) -> Program:
    """The step that `fit` compiles."""
    images, labels = _images(batch), np.zeros(batch, "int32")
    # The first call creates the metrics' variables, which are part of the state.
    model.compute_metrics(images, labels, np.zeros((batch, model.output_shape[-1]), "float32"))
    model.optimizer.build(model.trainable_variables)
    kinds = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables)
    return model.train_step, (_values(*kinds, model.metrics_variables), (images, labels))


def validation(model: keras.Model, batch: int) -> Program:
    """The step that predicts the validation images, twice as many at once."""
    return _prediction(model, 2 * batch)


def augmented(model: keras.Model, batch: int) -> Program:
    """The step of test-time augmentation, with as many views at once as `tta.predict_views` takes."""
    images = 4 * batch // (1 + len(VIEWS))
    return _prediction(_Parts(model).predictor((SOURCE, SOURCE, 3), "uint8", VIEWS, 1.35, True, True, 0), images)


PROGRAMS = {"head": training_step, "everything": training_step, "validation": validation, "tta": augmented}
COUNTS = ("kernels", "of them convolutions", "GB read and written", "pieces the host starts", "MiB of temporary memory")


def _prediction(model: keras.Model, batch: int) -> Program:
    def predict_step(state: Any, data: Any) -> Any:
        outputs, others = model.predict_step(state, data)
        return outputs, (state[0], others)  # as in Keras, which gives the state away and takes it back

    return predict_step, (_values(model.trainable_variables, model.non_trainable_variables), (_images(batch),))


def _images(batch: int) -> np.ndarray:
    return np.zeros((batch, SOURCE, SOURCE, 3), "uint8")


def _values(*kinds: list[keras.Variable]) -> tuple[list[Any], ...]:
    return tuple([variable.value for variable in kind] for kind in kinds)


def count(name: str, batch: int, size: int, precision: str, target: str) -> list[str]:
    """`COUNTS` of a program; in a process of its own, for JAX to read the flags of its layers."""
    with TemporaryDirectory() as folder:
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # it asks a driver
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder}"
        start_jax()
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="topology", topology="1x1x1", target_config=target
        )
        with with_precision(precision):
            model = classifier(size, frozen=name == "head")
        restore(model)
        if is_switched_on():
            replace_layers(model)
        function, arguments = PROGRAMS[name](model, batch)
        place = jax.sharding.SingleDeviceSharding(topology.devices[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
        compiled = jax.jit(function, donate_argnums=0).lower(*shapes).compile()
        (kernels,), (launches,) = (
            [path.read_text(encoding="utf-8") for path in Path(folder).glob(f"*{function.__name__}*{end}.txt")]
            for end in ("thunk_sequence", "after_thunk_passes")
        )
    return [
        f"{len(re.findall(r'^ *[0-9]+: k', kernels, re.MULTILINE)):,}",
        f"{kernels.count(': kConvolution'):,}",
        f"{traffic(compiled.as_text()) / 1e9:.2f}",
        f"{len(re.findall(r'^[0-9]+: k', launches, re.MULTILINE)):,}",
        f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:,.0f}",
    ]


@click.command(help=(__doc__ or "").replace("\n\n", "\n\n\b\n"))  # \b: lines stay as they are
@click.option("--program", "names", multiple=True, type=click.Choice(list(PROGRAMS)), default=list(PROGRAMS))
@click.option("--layers", "switches", multiple=True, type=click.Choice(["0", "1"]), default=["0", "1"], help=SWITCH)
@click.option("--batch", default=64, show_default=True, help="Images of a training step.")
@click.option("--size", default=128, show_default=True, help="Pixels of the network's input.")
@click.option("--precision", default="bfloat16", show_default=True, type=click.Choice(["bfloat16", "float32"]))
@click.option("--target", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=HERE / "h200.txtpb")
@click.option("--write", type=click.Path(path_type=Path, exists=True), help="Page whose table is replaced.")
def main(
    names: tuple[str, ...],
    switches: tuple[str, ...],
    batch: int,
    size: int,
    precision: str,
    target: Path,
    write: Path | None,
) -> None:
    """Compiles; prints each row as it is counted, and writes the page."""
    text, rows = target.read_text(encoding="utf-8"), []
    for name in names:
        for switch in switches:
            os.environ[SWITCH] = switch
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                counts = process.submit(count, name, batch, size, precision, text).result()
            rows.append([f"{name}{', layers for a GPU' * int(switch)}", *counts])
            click.echo(" | ".join(rows[-1]))
    device = (re.findall(r'^ *name: "(.*)"', text, re.MULTILINE) or [target.name])[0]
    packages = versions()
    page = (
        f"ResNet50 compiled for an {device}: batch {batch}, {size} pixels, {precision}; validation takes {2 * batch} "
        f"images, test-time augmentation {4 * batch // (1 + len(VIEWS))} with {len(VIEWS)} views each.\n\n"
        + table(["program", *COUNTS], rows)
        + f"\n{datetime.now(UTC).date()}, Keras {packages['keras']}, JAX {packages['jax']}; counted, not measured.\n"
    )
    click.echo(page)
    if write is not None:
        marked.write(write, "gpu_programs.py", page)


if __name__ == "__main__":
    main()
