"""What a training step asks of the device, over what the device can do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
from speed.measure import side_by_side, table
from speed.stages import PRECISIONS
from speed.training import classifier, program

LOOPS = 10
"""Of either in one measurement, so that starting them does not count."""


def section(batch: int, size: int, rounds: int, side: int) -> str:
    """FLOP and bytes of a step as XLA counts them, and the seconds they need at the measured ceilings."""
    rows, ceilings = [], []
    for precision in PRECISIONS:
        flops, speed = _ceilings(precision, rounds, side)
        ceilings.append(f"{precision} {flops / 1e12:.3g} TFLOP/s and {speed / 1e9:.3g} GB/s")
        for stage, frozen in (("head", True), ("everything", False)):
            step, cost = _step(batch, size, frozen, precision)
            seconds = side_by_side({"step": step}, rounds)["step"]
            arithmetic, memory = cost["flops"] / flops, cost["bytes accessed"] / speed
            rows.append(
                [
                    f"{stage}, {precision}",
                    f"{cost['flops'] / 1e9:.0f}",
                    f"{cost['bytes accessed'] / 1e9:.2f}",
                    *(f"{1e3 * amount:.2f}" for amount in (arithmetic, memory, seconds)),
                    "arithmetic" if arithmetic > memory else "memory",
                    f"{max(arithmetic, memory) / seconds:.2f}",
                ]
            )
    header = ["a step of ResNet50", "GFLOP", "GB", "arithmetic, ms", "memory, ms", "measured, ms"]
    return (
        f"{size} pixels, batch {batch}. Ceilings measured here, the product of two matrices of {side} x {side} and the "
        f"negation of {4 * side**2} numbers: {'; '.join(ceilings)}. FLOP and bytes as XLA counts them for the compiled "
        "step, each operation's operands from memory and its result to memory.\n\n"
        + table([*header, "which binds", "bound ÷ measured"], rows)
    )


def _ceilings(precision: str, rounds: int, side: int) -> tuple[float, float]:
    """FLOP/s and bytes/s."""
    matrix, numbers = jnp.ones((side, side), precision) / side, jnp.ones((4, side, side), precision)

    @jax.jit
    def product(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, LOOPS, lambda _, found: found @ matrix, x)

    @jax.jit
    def negation(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, LOOPS, lambda _, found: -found, x)

    seconds = side_by_side({"product": lambda: product(matrix), "negation": lambda: negation(numbers)}, rounds)
    return LOOPS * 2 * side**3 / seconds["product"], LOOPS * 2 * numbers.nbytes / seconds["negation"]


def _step(batch: int, size: int, frozen: bool, precision: str) -> tuple[Callable[[], Any], dict[str, float]]:
    """One step of the compiled program on a batch that is there already, and XLA's account of it."""
    earlier = keras.config.dtype_policy()
    keras.config.set_dtype_policy({"bfloat16": "mixed_bfloat16"}.get(precision, precision))
    try:
        model = classifier(size, frozen)
    finally:
        keras.config.set_dtype_policy(earlier)
    step, compiled = program(model, batch)
    return step, compiled.cost_analysis()
