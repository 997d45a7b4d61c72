"""Where JAX's compiled programs are kept, in a fresh process: JAX looks for its folder once."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
from kbaseline.devices import xla

first, second, none = Path(sys.argv[1]), Path(sys.argv[2]), None
for number, folder in enumerate((first, none, second, second)):
    xla.set_compilation_cache(folder)
    jax.jit(lambda x: x * 3 + number)(jnp.arange(7.0)).block_until_ready()
    print(*(len(list((place / "jax").glob("*-cache"))) for place in (first, second)))
"""


def python(code: str, *arguments: object, **environment: str) -> list[list[int]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**clean, **environment})
    assert done.returncode == 0, done.stderr
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def test_each_setting_holds_from_then_on(tmp_path: Path) -> None:
    """Golden: `data.cache_dir` is where programs go; without the cache none is added, whatever came before."""
    (a, b), off, other, again = python(CODE, tmp_path / "a", tmp_path / "b")
    assert a > 0
    assert b == 0
    assert off == [a, 0]
    assert other[0] == a
    assert 0 < other[1] < again[1]


def test_a_place_that_jax_was_told_stays(tmp_path: Path) -> None:
    """Golden: JAX's own setting is its user's, on and off."""
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert python(CODE, tmp_path / "a", tmp_path / "b", **own) == [[0, 0]] * 4
    assert list((tmp_path / "own").glob("*-cache"))


def test_old_programs_are_deleted(tmp_path: Path) -> None:
    """Golden: above the bound, the one used longest ago goes first as a process begins."""
    folder = tmp_path / "a" / "jax"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"jit-{number}-cache").write_bytes(bytes(1000))
        os.utime(folder / f"jit-{number}-cache", (1000 + number,) * 2)
    code = """
import sys
from pathlib import Path
from kbaseline.devices import xla
xla.PROGRAMS_BYTES = 2500
xla.set_compilation_cache(Path(sys.argv[1]))
"""
    python(code, tmp_path / "a")
    assert sorted(path.name for path in folder.iterdir()) == ["jit-1-cache", "jit-2-cache"]
