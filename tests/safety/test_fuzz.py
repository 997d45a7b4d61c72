"""Whatever other people's bytes hold, only our own errors come out: one line, the right exit code, no warning."""

from pathlib import Path

import pytest
from surfaces import SURFACES, Surface, drawn

by_surface = pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)


@by_surface
def test_only_our_own_errors_come_out(surface: Surface, tmp_path: Path) -> None:
    """Property: every case is taken, or refused in one line; both happen. Those that failed once are among them."""
    counts = drawn(surface, tmp_path, 100)
    assert min(counts["taken"], counts["refused"]) > 0


@pytest.mark.slow
@by_surface
def test_ten_thousand_cases(surface: Surface, tmp_path: Path) -> None:
    """Property: the same of 10,000; `benchmarks/fuzz.py` writes their counts down."""
    drawn(surface, tmp_path, 10_000)
