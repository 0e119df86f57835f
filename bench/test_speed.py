"""The cases under pytest-benchmark: ``pytest bench --benchmark-enable [--full]``.

Good for following one number with that tool's statistics; providers do not take turns here, so
ratios are those of ``python -m bench``.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench import matrix
from bench.cases import Case
from bench.inputs import build_inputs
from bench.provider import Provider
from bench.providers import PROVIDERS
from bench.suite import Limits, participants, reason_to_skip

pytestmark = pytest.mark.filterwarnings("default")  # those of the rivals are theirs


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("full")
    chosen = matrix.select(everything=False, quick=not full, pattern=None)
    pairs = [(c, p) for c in chosen if c.timed for p in participants(c, PROVIDERS)]
    ids = [f"{case.name}-{provider.name}" for case, provider in pairs]
    metafunc.parametrize(("case", "provider"), pairs, ids=ids)


def test_speed(benchmark: BenchmarkFixture, case: Case, provider: Provider) -> None:
    if reason := reason_to_skip(case, provider, Limits()):
        pytest.skip(reason)
    torch.compiler.reset()
    benchmark.group = case.name
    runner = provider.build(case, build_inputs(case))
    benchmark.pedantic(runner, rounds=5, warmup_rounds=1)
