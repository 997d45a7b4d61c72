"""`runtime.precision: auto` by what the device says of itself."""

from types import SimpleNamespace

import jax
import pytest

from kbaseline.devices.xla import dtype_policy


@pytest.mark.parametrize(
    ("device", "policy"),
    [
        ({"platform": "cpu"}, "float32"),
        ({"platform": "gpu", "compute_capability": "7.5"}, "float32"),
        ({"platform": "gpu", "compute_capability": "8.0"}, "mixed_bfloat16"),
        ({"platform": "gpu", "compute_capability": "10.0"}, "mixed_bfloat16"),
        ({"platform": "gpu", "compute_capability": "gfx90a"}, "float32"),
        ({"platform": "gpu", "compute_capability": None}, "float32"),
    ],
)
def test_bfloat16_only_where_the_device_says_so(
    device: dict[str, str | None], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden: NVIDIA GPUs from Ampere on; an AMD GPU, whose capability is no number, is no error."""
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(**device)])
    assert dtype_policy("auto") == policy
    assert (dtype_policy("float32"), dtype_policy("bfloat16")) == ("float32", "mixed_bfloat16")
