"""On a GPU: no rows, many rows, rows that do not count, and rows of any layout."""

from dataclasses import fields, replace

import pytest
import torch
from cases import form_inputs, linear_inputs, make_teacher, randn, run

import fastdistill as fd

pytestmark = pytest.mark.cuda

DEVICE = "cuda"


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("form", ["logits", "linear"])
@pytest.mark.parametrize("rows", [0, 4])
def test_no_counted_row_gives_a_connected_zero(kind, form, reduction, rows):
    function, inputs = form_inputs(form, rows, 33)
    mask = torch.zeros(rows, dtype=torch.bool)
    value, *gradients = run(
        function, inputs, make_teacher(kind, rows, 33), mask=mask, reduction=reduction,
        device=DEVICE,
    )  # fmt: skip
    assert value.shape == ((rows,) if reduction == "none" else ())
    assert (value == 0).all()
    for tensor, gradient in zip(inputs.values(), gradients, strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


LAYOUTS = {
    "sliced in time": lambda base: base[:, :-1],
    "sliced in vocabulary": lambda base: base[..., 3:36],
    "every other row": lambda base: base[:, ::2],
    "transposed batch and time": lambda base: base.transpose(0, 1),
    "one row for all": lambda base: base[:1, :1].expand(4, 5, 40),
    "one row for each sequence": lambda base: base[:, :1].expand(4, 5, 40),
    "columns far apart": lambda base: base[..., ::3],
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16])
def test_strided_logits(name, dtype_):
    student, teacher = (
        LAYOUTS[name](randn(4, 5, 40, seed=seed, dtype=dtype_).to(DEVICE)) for seed in (0, 1)
    )
    plain = (student.contiguous(), teacher.contiguous())
    expected = run(fd.distillation_loss, {"student_logits": plain[0]}, plain[1], reduction="none")
    for own, other in ((student, plain[1]), (plain[0], teacher), (student, teacher)):
        results = run(fd.distillation_loss, {"student_logits": own}, other, reduction="none")
        assert all(map(torch.equal, results, expected))


def test_strided_hidden_states_and_heads():
    inputs = linear_inputs(4, 16, 33)
    expected = run(fd.linear_distillation_loss, inputs, randn(4, 33), device=DEVICE)
    strided = {
        name: torch.stack([tensor, -tensor], -1).to(DEVICE)[..., 0]
        for name, tensor in inputs.items()
    }
    results = run(fd.linear_distillation_loss, strided, randn(4, 33).to(DEVICE))
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_more_rows_than_a_grid_has_in_its_second_dimension(kind):
    copies = 10_001
    student, teacher = randn(7, 33), make_teacher(kind, 7, 33)
    many = {
        field.name: tensor.repeat(copies, 1)
        for field in fields(teacher)
        if isinstance(tensor := getattr(teacher, field.name), torch.Tensor) and tensor.shape[0] == 7
    }
    upstream, config = torch.ones(7), {"reduction": "none", "device": DEVICE}
    few = run(
        fd.distillation_loss, {"student_logits": student}, teacher, upstream=upstream, **config
    )
    results = run(
        fd.distillation_loss, {"student_logits": student.repeat(copies, 1)},
        replace(teacher, **many), upstream=upstream.repeat(copies), **config,
    )  # fmt: skip
    for a, b in zip(results, few, strict=True):
        torch.testing.assert_close(a, b.repeat(copies, *[1] * (b.dim() - 1)), rtol=1e-6, atol=1e-7)


@pytest.fixture
def big_memory():
    """That of a GPU on which 2^31 logits of bfloat16 and their gradient fit."""
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GiB of free GPU memory")


def test_rows_further_apart_than_32_bits_can_count(big_memory):
    stride = 2**31 + 8
    memory = torch.empty(stride + 33, dtype=torch.bfloat16, device=DEVICE)
    student = memory.as_strided((2, 33), (stride, 1))
    student.copy_(randn(2, 33))
    teacher = randn(2, 33, seed=1).to(DEVICE)
    results = run(fd.distillation_loss, {"student_logits": student}, teacher)
    expected = run(fd.distillation_loss, {"student_logits": student.clone()}, teacher)
    assert all(map(torch.equal, results, expected))


def test_more_logits_than_32_bits_can_count(big_memory):
    count, vocab = 2**31 // 65536 + 2, 65536
    student = torch.empty(count, vocab, dtype=torch.bfloat16, device=DEVICE)
    student[-1] = randn(vocab).to(DEVICE)
    teacher, mask = randn(1, vocab, seed=1).to(DEVICE), torch.arange(count, device=DEVICE)
    last = student[-1:].clone().requires_grad_()
    expected = fd.distillation_loss(last, teacher)
    expected.backward()
    loss = fd.distillation_loss(
        student.requires_grad_(), teacher.expand(count, vocab), mask=mask == count - 1
    )
    loss.backward()
    assert loss == expected
    assert torch.equal(student.grad[-1:], last.grad)
    assert not student.grad[:-1].any()
