"""Bitwise the same results from run to run and, for the logits loss, from any number of threads."""

import subprocess
import sys

import pytest
import torch
from cases import make_teacher, randn, run

import fastdistill as fd


@pytest.fixture
def threads():
    """Sets torch's number of threads for the rest of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def equal(results, others):
    for a, b in zip(results, others, strict=True):
        assert torch.equal(a, b)


def test_logits_loss_does_not_depend_on_threads(case, threads):
    divergence, kind = case
    rows = 200  # of 1031 tokens: more than one thread's share
    student = {"student_logits": randn(rows, 1031, scale=2.0)}
    teacher = make_teacher(kind, rows, 1031)
    labels = torch.arange(rows)
    results = []
    for number in (1, 2, 3):
        threads(number)
        results.append(run(
            fd.distillation_loss, student, teacher, labels, divergence=divergence, hard_weight=0.5,
            reduction="none",
        ))  # fmt: skip
    equal(results[1], results[0])
    equal(results[2], results[0])


def test_linear_loss_is_the_same_from_run_to_run(kind, threads):
    threads(2)
    inputs = {
        "student_hidden": randn(150, 64),
        "student_weight": randn(1031, 64, seed=1, scale=0.1),
        "student_bias": randn(1031, seed=2),
    }
    teacher = make_teacher(kind, 150, 1031)
    first = run(fd.linear_distillation_loss, inputs, teacher, chunk_size=40)
    for _ in range(5):
        equal(run(fd.linear_distillation_loss, inputs, teacher, chunk_size=40), first)


def test_logits_loss_is_the_same_from_run_to_run(kind, threads):
    threads(2)
    student, teacher = {"student_logits": randn(200, 1031)}, make_teacher(kind, 200, 1031)
    first = run(fd.distillation_loss, student, teacher, reduction="mean")
    for _ in range(5):
        equal(run(fd.distillation_loss, student, teacher, reduction="mean"), first)


THREADS = """
import os, sys
import torch
import fastdistill as fd

def count(): return len(os.listdir("/proc/self/task"))

torch.set_num_threads(int(sys.argv[1]))
before = count()
student, teacher = torch.ones(400, 4096), torch.ones(400, 4096)
fd.distillation_loss(student, teacher)
print(count() - before)
maps = open("/proc/self/maps").read().split()
print(len({path for path in maps if "libgomp" in path or "libomp" in path or "libiomp" in path}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("number", [1, 2])
def test_torch_decides_over_the_threads_and_shares_its_openmp(number):
    """One thread starts no other; two start one, torch's and ours: there is a single OpenMP."""
    program = [sys.executable, "-c", THREADS, str(number)]
    output = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    started, runtimes = map(int, output.split())
    assert started == number - 1
    assert runtimes == 1
