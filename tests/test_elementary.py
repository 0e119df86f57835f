"""The accuracy of exp, log and tanh, and of reading and writing half precision."""

import math

import numpy as np
import pytest
import torch
from cases import assert_half_precision_is_read_and_written, randn, run

import fastdistill as fd

INF = math.inf


def evaluate(name, x):
    x = np.ascontiguousarray(x, dtype=np.float32)
    out = np.empty(x.size + 16, np.float32)  # the kernel fills up the last vector
    fd._C.evaluate(getattr(fd._C.Elementary, name), x.ctypes.data, out.ctypes.data, x.size)
    return out[: x.size]


# The bounds that scalar_math.h and vec_math.h state, in units of the last place of the exact result.
BOUNDS = [
    ("exp", 2, [np.linspace(-16, 16, 500_001), np.linspace(-1, 1, 200_001), [0.0, 1e-30]]),
    ("exp", 5, [np.linspace(-87, -16, 500_001), np.linspace(16, 88, 500_001)]),
    ("log", 2, [np.geomspace(2.0**-126, 3e38, 500_001), np.linspace(0.5, 2, 500_001), [1.0]]),
    ("tanh", 3, [np.linspace(-12, 12, 500_001), np.geomspace(1e-30, 30, 100_001), [0.0, 700.0]]),
]


@pytest.mark.parametrize(
    ("name", "bound", "samples"), BOUNDS, ids=["exp near 0", "exp", "log", "tanh"]
)
def test_elementary_function_within_its_bound(name, bound, samples, isa):
    x = np.concatenate(samples).astype(np.float32)
    exact = getattr(np, name)(x.astype(np.float64))
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    error = np.abs(evaluate(name, x).astype(np.float64) - exact) / unit
    assert error.max() <= bound, x[error.argmax()]


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("exp", [0.0, -0.0, -INF, -88.0, -1e30, math.nan], [1, 1, 0, 0, 0, math.nan]),
        ("log", [1.0, math.nan], [0.0, math.nan]),
        ("tanh", [0.0, INF, -INF, 1e30, -1e30, math.nan], [0, 1, -1, 1, -1, math.nan]),
    ],
)
def test_elementary_function_at_special_values(name, x, expected, isa):
    np.testing.assert_array_equal(evaluate(name, x), np.float32(expected))


@pytest.mark.parametrize("name", ["exp", "log", "tanh"])
def test_elementary_function_does_not_depend_on_the_lane(name, isa):
    x = np.linspace(0.1, 20.0, 67, dtype=np.float32)
    alone = np.concatenate([evaluate(name, x[i : i + 1]) for i in range(x.size)])
    np.testing.assert_array_equal(evaluate(name, x), alone)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_is_read_and_written(half, isa):
    assert_half_precision_is_read_and_written(half)


@pytest.mark.parametrize(("half", "dropped_bits"), [(torch.float16, 13), (torch.bfloat16, 16)])
def test_half_precision_gradient_is_the_float32_one_to_nearest_even(half, dropped_bits, isa):
    """Bit by bit, over enough elements for some that lie halfway between two numbers."""
    student, teacher = (randn(64, 8192, seed=seed, dtype=half) for seed in (1, 2))

    def gradient(dtype):
        _, by_logits = run(
            fd.distillation_loss, {"student_logits": student.to(dtype)}, teacher.to(dtype),
            reduction="none", upstream=torch.ones(64),
        )  # fmt: skip
        return by_logits

    exact, found = gradient(torch.float32), gradient(half)
    assert found.dtype == half
    assert torch.equal(found, exact.to(half))
    dropped = exact.view(torch.int32) & (2**dropped_bits - 1)
    assert (dropped == 2 ** (dropped_bits - 1)).any()
