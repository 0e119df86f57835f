"""On a GPU: peak memory, as torch's allocator counts it, over what was there before a call."""

import pytest
import torch

import fastdistill as fd

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
MIB, SLACK = 2**20, 4  # SLACK, in MiB: panels of a head that are widened, numbers per token


def mib(*shape, itemsize=4):
    return torch.Size(shape).numel() * itemsize / MIB


def peak_growth(function, *tensors, **config):
    """MiB by which a forward and a backward exceed what was there before, at their peak."""

    def step():
        loss = function(*tensors, **config)
        wanted = [tensor for tensor in tensors if getattr(tensor, "requires_grad", False)]
        return torch.autograd.grad(loss, wanted, torch.ones_like(loss))

    step()  # makes what is made once: workspaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def linear_growth(rows, vocab, width, dtype, wanted=("hidden", "weight"), **config):
    options = {"dtype": dtype, "device": DEVICE}
    hidden, weight = torch.ones(rows, width, **options), torch.ones(vocab, width, **options)
    teacher = fd.TeacherHead(hidden.clone(), weight.clone())
    hidden.requires_grad_("hidden" in wanted)
    weight.requires_grad_("weight" in wanted)
    return peak_growth(fd.linear_distillation_loss, hidden, weight, teacher, **config)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_loss_holds_a_chunk_while_tokens_grow_eightfold(dtype_, reduction):
    vocab, width, chunk = 8192, 64, 128
    few, many = (
        linear_growth(rows, vocab, width, dtype_, chunk_size=chunk, reduction=reduction)
        for rows in (512, 4096)
    )
    assert few <= 2 * mib(chunk, vocab) + 3 * (mib(512, width) + mib(vocab, width)) + SLACK
    assert many - few <= 3 * mib(4096 - 512, width) + SLACK
    assert mib(4096, vocab, itemsize=2) > 2 * many  # the logits of one side alone


def test_chosen_chunks_do_not_grow_with_the_tokens():
    rows, vocab = 65536, 131072
    grown = linear_growth(rows, vocab, 8, torch.bfloat16, wanted=["hidden"])
    assert grown <= mib(rows, vocab, itemsize=2) / 4


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_frozen_head_needs_no_gradient_buffer(reduction):
    sizes = {"rows": 32, "vocab": 8192, "width": 2048, "dtype": torch.float32}
    config = {"chunk_size": 16, "reduction": reduction}
    frozen = linear_growth(**sizes, wanted=["hidden"], **config)
    assert frozen <= 2 * mib(16, 8192) + 3 * mib(32, 2048) + SLACK
    assert linear_growth(**sizes, wanted=["weight"], **config) >= mib(8192, 2048)


@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16])
def test_row_losses_of_logits_hold_one_gradient(dtype_):
    logits = torch.ones(256, 65536, dtype=dtype_, device=DEVICE)
    student, size = logits.clone().requires_grad_(), mib(256, 65536, itemsize=dtype_.itemsize)
    grown = peak_growth(fd.distillation_loss, student, logits, reduction="none")
    assert size <= grown <= size + SLACK
