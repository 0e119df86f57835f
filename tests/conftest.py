"""Parametrises every test by the lists of ``cases``: a test asks for an axis by naming it."""

import hypothesis
import pytest
import torch

import fastdistill as fd

pytest.register_assert_rewrite("cases")
import cases  # noqa: E402  (after the rewriting of its asserts)

# No database: examples are derived from the test itself, the same on every machine.
hypothesis.settings.register_profile("laws", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("laws")

# The tensors of most tests are tiny: torch's threads would do nothing but wait for each other.
torch.set_num_threads(1)

AXES = {
    "divergence": cases.DIVERGENCES,
    "case": cases.CASES,
    "listed_case": cases.LISTED_CASES,
    "kind": cases.TEACHERS,
    "dtype": cases.DTYPES,
    "vocab": cases.VOCABS,
}


if not torch.cuda.is_available():
    NO_CUDA = "needs an NVIDIA GPU"
elif not getattr(fd._C, "CUDA", ""):
    NO_CUDA = "needs a build with the CUDA backend (FD_CUDA=ON)"
else:
    NO_CUDA = None


def pytest_collection_modifyitems(items):
    """Slow tests come first: at the end all processes but one would wait for them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item):
    if NO_CUDA and item.get_closest_marker("cuda"):
        pytest.skip(NO_CUDA)


def label(value):
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def pytest_generate_tests(metafunc):
    for name, values in AXES.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=label)


@pytest.fixture(params=fd._C.available_isas())
def isa(request):
    """Runs the test on each instruction set that this machine has."""
    before = fd._C.current_isa()
    fd._C.select_isa(request.param)
    yield request.param
    fd._C.select_isa(before)
