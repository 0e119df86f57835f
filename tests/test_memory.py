"""Peak memory, measured in a process of its own: how far its resident set grows in each call."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

MEASURE = """
import json, re, sys
import torch
import fastdistill as fd

def peak():  # not ru_maxrss, which a process inherits from the one that starts it
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024

def linear(rows, vocab, width, dtype, wanted, **config):
    def ones(*shape): return torch.ones(*shape, dtype=getattr(torch, dtype))
    hidden, weight = ones(rows, width), ones(vocab, width)
    hidden.requires_grad_("hidden" in wanted)
    weight.requires_grad_("weight" in wanted)
    teacher = fd.TeacherHead(ones(rows, width), ones(vocab, width))
    start = peak()
    fd.linear_distillation_loss(hidden, weight, teacher, **config).sum().backward()
    return peak() - start

def logits(rows, vocab, dtype):
    student, teacher = torch.ones(2, rows, vocab, dtype=getattr(torch, dtype))
    student.requires_grad_()
    start = peak()
    fd.distillation_loss(student, teacher).backward()
    return peak() - start

torch.set_num_threads(2)
name, *calls = json.loads(sys.argv[1])
small = {**calls[0], "rows": 4, "vocab": 64}
globals()[name](**small)  # code, libraries and thread pools are not what is measured
print(json.dumps([globals()[name](**call) for call in calls]))
"""


def growth(form, *calls):
    """MiB by which the peak grows in each call, over all that was before."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps([form, *calls])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(run.stdout)


# Page rounding, the packing of GEMMs, and the panels of a half-precision head that are widened.
SLACK = 20
VOCAB, WIDTH, CHUNK = 8192, 64, 128


def mib(*shape, itemsize=4):
    total = itemsize
    for size in shape:
        total *= size
    return total / 2**20


def call(rows, **config):
    return {
        "rows": rows, "vocab": VOCAB, "width": WIDTH, "chunk_size": CHUNK, "dtype": "float32",
        "wanted": ["hidden", "weight"], "reduction": "mean", **config,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dtype_", "reduction"), [("float32", "none"), ("float32", "mean"), ("bfloat16", "mean")]
)
def test_linear_loss_holds_a_chunk_while_tokens_grow_eightfold(dtype_, reduction):
    few, many = (call(n, dtype=dtype_, reduction=reduction) for n in (512, 4096))
    first, more = growth("linear", few, many)
    assert mib(4096, VOCAB, itemsize=2) > first + more + 20  # the logits of one side alone
    chunks = 2 * mib(CHUNK, VOCAB)
    weight_gradient = 2 * mib(VOCAB, WIDTH)  # and its float32 sum
    assert first <= chunks + mib(512, WIDTH) + weight_gradient + SLACK
    assert more <= 3 * mib(4096, WIDTH) + SLACK  # both hidden states and a gradient


def test_linear_loss_chooses_chunks_within_its_budget():
    (grown,) = growth("linear", call(16384, chunk_size=None, width=8, wanted=["hidden"]))
    assert mib(16384, VOCAB) > 3 * 160
    assert 80 < grown <= 160 + mib(16384, 8) + SLACK


def test_frozen_head_needs_no_gradient_buffer():
    wide = {"width": 2048, "chunk_size": 16}  # the head and its gradient are 64 MiB
    frozen, trained = growth(
        "linear", call(32, wanted=["hidden"], **wide), call(32, wanted=["weight"], **wide)
    )
    assert frozen <= 2 * mib(16, VOCAB) + SLACK
    assert trained >= 64


def test_a_bfloat16_head_needs_a_wide_sum_for_several_chunks_alone():
    one, three = (
        call(rows, width=2048, chunk_size=16, dtype="bfloat16", wanted=["weight"])
        for rows in (16, 48)
    )
    single, several = growth("linear", one, three)
    gradient, panels = mib(VOCAB, 2048, itemsize=2), 2 * 16
    assert single <= gradient + panels + SLACK
    assert single + several >= 2.9 * gradient  # what is measured can be seen


def test_logits_loss_holds_one_gradient():
    shape = {"rows": 256, "vocab": 65536}
    (grown,) = growth("logits", {**shape, "dtype": "float32"})
    assert 0.9 * mib(256, 65536) <= grown <= mib(256, 65536) + SLACK
