"""What a training step asks of the device, over what the device can do."""

import math
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import keras
from speed.measure import side_by_side, table
from speed.stages import PRECISIONS
from speed.training import classifier, program

LOOPS = 10
"""Of either in one measurement, so that starting them does not count."""


def section(
    batch: int,
    size: int,
    rounds: int,
    side: int,
    precisions: Sequence[str] = PRECISIONS,
    deadline: float = math.inf,
) -> str:
    """FLOP and bytes of a step, and the seconds they need at the measured ceilings; no row after the deadline."""
    rows, ceilings = [], []
    for precision in precisions:
        if time.monotonic() > deadline:
            continue
        flops, speed = _ceilings(precision, rounds, side)
        ceilings.append(f"{precision} {flops / 1e12:.3g} TFLOP/s and {speed / 1e9:.3g} GB/s")
        for stage, frozen in (("head", True), ("everything", False)):
            step, work, moved = _step(batch, size, frozen, precision)
            seconds = side_by_side({"step": step}, rounds)["step"]
            arithmetic, memory = work / flops, moved / speed
            rows.append(
                [
                    f"{stage}, {precision}",
                    f"{work / 1e9:.0f}",
                    f"{moved / 1e9:.2f}",
                    *(f"{1e3 * amount:.2f}" for amount in (arithmetic, memory, seconds)),
                    "arithmetic" if arithmetic > memory else "memory",
                    f"{max(arithmetic, memory) / seconds:.2f}",
                ]
            )
    header = ["a step of ResNet50", "GFLOP", "GB", "arithmetic, ms", "memory, ms", "measured, ms"]
    return (
        f"{size} pixels, batch {batch}. Ceilings measured here, the product of two matrices of {side} x {side} and the "
        f"negation of {4 * side**2} numbers: {'; '.join(ceilings)}. FLOP as XLA counts them before compiling the "
        "step; bytes: the operands of every kernel of the compiled step from memory, its results to memory.\n\n"
        + table([*header, "which binds", "bound ÷ measured"], rows)
    )


def _ceilings(precision: str, rounds: int, side: int) -> tuple[float, float]:
    """FLOP/s and bytes/s."""
    # Random, for zeros and ones take less power and run faster. The factor keeps powers of the matrix finite.
    drawn = jax.random.normal(jax.random.key(0), (4, side, side), "float32")
    matrix, numbers = (drawn[0] / side**0.5).astype(precision), drawn.astype(precision)

    @jax.jit
    def product(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, LOOPS, lambda _, found: found @ matrix, x)

    @partial(jax.jit, donate_argnums=0)  # else the loop would begin with a copy, one pass more
    def negation(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, LOOPS, lambda _, found: -found, x)

    def negated() -> jax.Array:
        nonlocal numbers
        numbers = negation(numbers)
        return numbers

    seconds = side_by_side({"product": lambda: product(matrix), "negation": negated}, rounds)
    return LOOPS * 2 * side**3 / seconds["product"], LOOPS * 2 * numbers.nbytes / seconds["negation"]


def _step(batch: int, size: int, frozen: bool, precision: str) -> tuple[Callable[[], Any], float, float]:
    """One step of the compiled program on a batch that is there already, its FLOP and its bytes; NaN if unknown."""
    earlier = keras.config.dtype_policy()
    keras.config.set_dtype_policy({"bfloat16": "mixed_bfloat16"}.get(precision, precision))
    try:
        model = classifier(size, frozen)
    finally:
        keras.config.set_dtype_policy(earlier)
    step, compiled, cost = program(model, batch)
    return step, (cost or {}).get("flops", math.nan), float(traffic(compiled.as_text()))


_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
_WIDTHS |= {"s64": 8, "u64": 8, "f64": 8}
_NO_KERNEL = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"}


def traffic(text: str) -> int:
    """Bytes that the kernels of a compiled program read and write, as its text lists their operands and results."""
    shapes: dict[str, int] = {}
    moved = 0
    for line in text[text.index("\nENTRY") :].splitlines():
        found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z\-]+)\((.*)$", line)
        if found is None:
            continue
        name, shape, operation, rest = found.groups()
        # The last result of a library's kernel is the memory it works in.
        shapes[name] = _bytes(re.sub(r", u8\[\d+\]\{0\}\)$", ")", shape))
        if operation not in _NO_KERNEL:
            operands = re.findall(r"%?([\w.\-]+)", rest.split(")")[0])
            moved += shapes[name] + sum(shapes.get(operand, 0) for operand in operands)
    return moved


def _bytes(shape: str) -> int:
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    return sum(_WIDTHS.get(kind, 0) * math.prod(int(n) for n in sides.split(",") if n) for kind, sides in arrays)
