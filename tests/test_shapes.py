"""Tensors of any shape and layout; no rows, no counted rows, one token, rows far apart."""

import math
import mmap
from dataclasses import replace

import pytest
import torch
from cases import close, make_teacher, randn, rows, run, top_k, true_rows

import fastdistill as fd
from fastdistill import _native, _rows


def same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a, b)


# ---- leading dimensions ------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (1,), (6,), (2, 3), (3, 1, 2), (1, 2, 1, 3)], ids=str)
def test_any_leading_dimensions(kind, leading):
    count = math.prod(leading)
    student, teacher = randn(*leading, 33), make_teacher(kind, *leading, 33)
    labels, upstream = torch.arange(count).view(leading), torch.linspace(1, 2, count).view(leading)
    value, gradient = rows(
        student, teacher, labels=labels, mask=labels >= 0, hard_weight=0.5, upstream=upstream
    )
    assert value.shape == leading
    per_token = {
        name: tensor.reshape(count, tensor.shape[-1])
        for name, tensor in vars(teacher).items()
        if name in ("logits", "hidden", "ids", "log_probs", "weights")
    }
    expected = rows(
        student.reshape(count, 33), replace(teacher, **per_token), labels=labels.flatten(),
        hard_weight=0.5, upstream=upstream.flatten(),
    )  # fmt: skip
    same((value.flatten(), gradient.reshape(count, 33)), expected)


@pytest.mark.parametrize("leading", [(), (2, 3)], ids=str)
def test_any_leading_dimensions_of_hidden_states(kind, leading):
    hidden, weight = randn(*leading, 8), randn(33, 8, seed=1)
    teacher = make_teacher(kind, *leading, 33)
    inputs = {"student_hidden": hidden, "student_weight": weight}
    value, by_hidden, by_weight = run(
        fd.linear_distillation_loss, inputs, teacher, reduction="none", chunk_size=4
    )
    logits, _ = rows(hidden @ weight.T, teacher)
    torch.testing.assert_close(value, logits)
    assert by_hidden.shape == hidden.shape
    assert by_weight.shape == weight.shape


# ---- layouts -----------------------------------------------------------------------------------


@pytest.fixture
def copies(monkeypatch):
    """The (rows, vocab) blocks that the kernels get, as data pointers."""
    seen, original = [], _native.run_rows

    def spy(mode, spec, student, teacher, **kwargs):
        seen.append((student, teacher))
        return original(mode, spec, student, teacher, **kwargs)

    for module in ("_ops", "_linear"):
        monkeypatch.setattr(f"fastdistill.{module}.run_rows", spy)
    return seen


def layouts():
    base = randn(4, 5, 40)
    yield "sliced in time", base[:, :-1]
    yield "sliced in vocabulary", base[..., 3:36]
    yield "every other row", base[:, ::2]
    yield "transposed batch and time", base.transpose(0, 1)
    yield "last rows", base[1:, 2:]
    yield "one row for all", base[:1, :1].expand(4, 5, 40)
    yield "one row for each sequence", base[:, :1].expand(4, 5, 40)


LAYOUTS = dict(layouts())


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_strided_logits_are_read_where_they_are(name, side, copies):
    view = LAYOUTS[name]
    other = randn(*view.shape, seed=1)
    student, teacher = {
        "student": (view, other), "teacher": (other, view), "both": (view, view.roll(1, -1)),
    }[side]  # fmt: skip
    results = rows(student, teacher)
    for own, _ in copies:
        assert own.untyped_storage().data_ptr() == student.untyped_storage().data_ptr()
    for _, block in copies:
        assert block.untyped_storage().data_ptr() == teacher.untyped_storage().data_ptr()
    same(results, rows(student.contiguous(), teacher.contiguous()))
    assert results[1].is_contiguous()


def test_columns_that_are_not_contiguous():
    student, teacher = randn(33, 6).T, randn(6, 66, seed=1)[:, ::2]
    same(rows(student, teacher), rows(student.contiguous(), teacher.contiguous()))


def test_strided_hidden_states_heads_and_lists():
    hidden, weight = randn(4, 16)[:, ::2], randn(8, 33, seed=1).T
    bias = randn(66, seed=2)[::2]
    listed = top_k(randn(33, 4, seed=3).T.log_softmax(-1), 6)
    wide = fd.TopKTeacher(
        *(torch.stack([t, t], -1)[..., 0] for t in (listed.ids, listed.log_probs))
    )
    inputs = {"student_hidden": hidden, "student_weight": weight, "student_bias": bias}
    results = run(fd.linear_distillation_loss, inputs, wide, reduction="none")
    dense = {name: tensor.contiguous() for name, tensor in inputs.items()}
    expected = run(fd.linear_distillation_loss, dense, listed, reduction="none")
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b)


def strided(tensor):
    """The same numbers at every other place, with nonsense between them."""
    return torch.stack([tensor, -tensor if tensor.dtype != torch.bool else ~tensor], -1)[..., 0]


@pytest.mark.parametrize("leading", [(6,), (2, 3)], ids=str)
@pytest.mark.parametrize("function", [fd.distillation_loss, fd.linear_distillation_loss])
def test_strided_tokens(function, leading):
    """Labels, mask, weights, tail mass and upstream gradient that are not contiguous."""
    inputs = {"student_logits": randn(*leading, 33)}
    if function is fd.linear_distillation_loss:
        inputs = {"student_hidden": randn(*leading, 8), "student_weight": randn(33, 8, seed=1)}
    labels = torch.arange(6).view(leading)
    mask, upstream = labels != 2, torch.linspace(1, 2, 6).view(leading)
    tail = torch.linspace(-3, -2, 6, dtype=torch.float64).view(leading)
    teacher = replace(make_teacher("bucket", *leading, 33), tail_log_prob=tail)
    results = [
        run(
            function, inputs, replace(teacher, tail_log_prob=layout(tail)), layout(labels),
            mask=layout(mask), weights=layout(upstream), upstream=layout(upstream),
            hard_weight=0.5, reduction="none",
        )
        for layout in (strided, torch.Tensor.contiguous)
    ]  # fmt: skip
    same(*results)


@pytest.mark.parametrize("function", [fd.distillation_loss, fd.linear_distillation_loss])
def test_tokens_of_stride_zero(function):
    inputs = {"student_logits": randn(6, 33)}
    if function is fd.linear_distillation_loss:
        inputs = {"student_hidden": randn(6, 8), "student_weight": randn(33, 8, seed=1)}
    tail = torch.tensor(-2.0, dtype=torch.float64).expand(6)
    teacher = make_teacher("bucket", 6, 33)
    results = [
        run(
            function, inputs, replace(teacher, tail_log_prob=layout(tail)),
            layout(torch.tensor(3).expand(6)), mask=layout(torch.tensor(True).expand(6)),
            weights=layout(torch.tensor(0.5).expand(6)), hard_weight=0.5, reduction="none",
            upstream=layout(torch.tensor(2.0).expand(6)),
        )
        for layout in (lambda tensor: tensor, torch.Tensor.contiguous)
    ]  # fmt: skip
    same(*results)


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_student_and_teacher_of_different_dtypes(dtype, other):
    student, teacher = randn(3, 33, dtype=dtype), randn(3, 33, seed=1, dtype=other)
    value, gradient = rows(student, teacher)
    assert gradient.dtype == dtype
    exact, _ = rows(student.double(), teacher.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


# ---- nothing to do -----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3)], ids=str)
def test_no_rows(kind, leading, reduction):
    teacher = make_teacher(kind, *leading, 33)
    value, gradient = run(
        fd.distillation_loss, {"student_logits": randn(*leading, 33)}, teacher, reduction=reduction
    )
    assert value.shape == (leading if reduction == "none" else ())
    assert (value == 0).all()
    assert gradient.shape == (*leading, 33)
    inputs = {"student_hidden": randn(*leading, 8), "student_weight": randn(33, 8)}
    value, by_hidden, by_weight = run(
        fd.linear_distillation_loss, inputs, teacher, reduction=reduction
    )
    assert (value == 0).all()
    assert by_hidden.shape == (*leading, 8)
    assert torch.equal(by_weight, torch.zeros(33, 8))


@pytest.mark.parametrize("how", ["mask", "labels"])
@pytest.mark.parametrize(
    "reduced",
    [
        {"reduction": "none"},
        {"reduction": "sum"},
        {"reduction": "mean"},
        {"num_items": 5},
        {"num_items": torch.tensor(0)},  # neither does any other micro-batch count one
    ],
    ids=str,
)
def test_no_counted_row_gives_a_connected_zero(kind, how, reduced):
    not_counted = {
        "mask": {"mask": torch.zeros(4, dtype=torch.bool)},
        "labels": {"labels": torch.full((4,), -100), "hard_weight": 0.5},
    }[how]
    head = {"student_hidden": randn(4, 8), "student_weight": randn(33, 8)}
    for function, inputs in (
        (fd.distillation_loss, {"student_logits": randn(4, 33)}),
        (fd.linear_distillation_loss, head),
    ):
        value, *gradients = run(
            function, inputs, make_teacher(kind, 4, 33), **not_counted, **reduced
        )
        assert (value == 0).all()
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("counting", ["1111111", "0000000", "0000111", "1000001", "0110101"])
def test_no_logits_are_made_of_rows_that_do_not_count(counting, reduction, monkeypatch):
    """In pieces of three rows of a teacher's head; what its other rows hold is not looked at."""
    monkeypatch.setattr(_rows, "rows_that_fit", lambda *_: 3)
    made, logits = [], _rows.Head.logits

    def spy(head, hidden, out):
        made.append(hidden.shape[0])
        logits(head, hidden, out)

    monkeypatch.setattr(_rows.Head, "logits", spy)
    mask = torch.tensor([digit == "1" for digit in counting])
    student, teacher = randn(7, 33), make_teacher("head", 7, 33)
    config = {"mask": mask, "reduction": reduction}
    expected = true_rows(student, teacher, "forward_kl", **config)
    teacher.hidden[~mask] = torch.nan
    close(rows(student, teacher, **config), expected)
    passes = 2 if reduction == "none" else 1
    assert sum(made) == passes * mask.sum()


def test_weights_that_sum_to_zero():
    value, gradient = run(
        fd.distillation_loss, {"student_logits": randn(4, 33)}, randn(4, 33, seed=1),
        weights=torch.zeros(4),
    )  # fmt: skip
    assert value == 0
    assert (gradient == 0).all()


# ---- extremes ----------------------------------------------------------------------------------


def test_vocabulary_of_one_token(case):
    """Both sides are certain of it."""
    divergence, kind = case
    value, gradient = rows(randn(4, 1), make_teacher(kind, 4, 1), divergence=divergence)
    torch.testing.assert_close(value, torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, torch.zeros(4, 1), rtol=0, atol=1e-6)


def far_rows(count, vocab, stride, dtype=torch.bfloat16):
    """`count` rows of `vocab` numbers that are `stride` apart, in memory that is never touched."""
    size = ((count - 1) * stride + vocab) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype)
    return memory.as_strided((count, vocab), (stride, 1))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_rows_that_overlap(side):
    """Windows over one sequence of numbers, say."""
    windows, others = randn(40).unfold(0, 33, 1), randn(8, 33, seed=1)
    pair = (windows, others) if side == "student" else (others, windows)
    same(rows(*pair), rows(*(t.clone() for t in pair)))


def test_rows_further_apart_than_32_bits_can_count():
    student, teacher = (far_rows(2, 33, 2**31 + 8) for _ in range(2))
    student.copy_(randn(2, 33))
    teacher.copy_(randn(2, 33, seed=1))
    same(rows(student, teacher), rows(student.clone(), teacher.clone()))


def test_more_logits_than_32_bits_can_count():
    """All but the last row are not counted, and neither read nor backed by memory."""
    vocab = 65536
    count = 2**31 // vocab + 2
    student = far_rows(count, vocab, vocab)
    student[-1] = randn(vocab)
    teacher = randn(1, vocab, seed=1, dtype=torch.bfloat16).expand(count, vocab)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[-1] = True
    loss = fd.distillation_loss(student, teacher, mask=mask, reduction="sum")
    assert loss == fd.distillation_loss(student[-1:].clone(), teacher[-1:].clone())
    assert loss > 0


def test_a_teacher_of_one_row_for_all_is_not_copied():
    """Stride 0 over 2^31 logits on either side."""
    row, other = randn(1, 4096), randn(1, 4096, seed=1)
    count = 2**19 + 1
    mask = torch.arange(count) >= count - 3
    loss = fd.distillation_loss(
        row.expand(count, 4096), other.expand(count, 4096), mask=mask, reduction="sum"
    )
    torch.testing.assert_close(loss, 3 * fd.distillation_loss(row, other))
