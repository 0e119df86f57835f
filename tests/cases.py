"""What the tests iterate, and makers of their inputs. Everything is determined by its arguments."""

from dataclasses import fields, replace

import torch

import fastdistill as fd
from fastdistill import reference

DIVERGENCES = (
    fd.ForwardKL(),
    fd.ReverseKL(),
    fd.SymmetricKL(),
    fd.SymmetricKL(0.0),
    fd.SymmetricKL(0.3),
    fd.SymmetricKL(1.0),
    fd.JensenShannon(),
    fd.JensenShannon(0.1),
    fd.JensenShannon(0.9),
    fd.SkewForwardKL(),
    fd.SkewForwardKL(0.7),
    fd.SkewReverseKL(),
    fd.SkewReverseKL(0.7),
    fd.TotalVariation(),
    fd.NegativeLogAcceptance(),
    fd.Renyi(0.5),
    fd.Renyi(0.7),
    fd.Renyi(2.0),
    fd.AlphaBeta(0.5, 0.7),
    fd.AlphaBeta(1.5, 0.5),
)
# One of each class: for what does not depend on the parameters.
CLASSES = tuple({type(d): d for d in reversed(DIVERGENCES)}.values())[::-1]
KINKED = (fd.TotalVariation, fd.NegativeLogAcceptance)  # not differentiable where p = q
# f-divergences and monotone functions of one: merging tokens cannot increase them.
MONOTONE = tuple(d for d in DIVERGENCES if not isinstance(d, fd.AlphaBeta))
SYMMETRIC = (
    fd.SymmetricKL(),
    fd.JensenShannon(),
    fd.TotalVariation(),
    fd.NegativeLogAcceptance(),
    fd.Renyi(0.5),
    fd.AlphaBeta(0.8, 0.8),
)

TEACHERS = ("logits", "head", "bucket", "renormalize", "zero", "uniform", "sampled")
TAILS = ("bucket", "renormalize", "zero", "uniform")


def accepts(teacher: str, divergence: fd.Divergence) -> bool:
    if teacher == "sampled":
        return isinstance(divergence, fd.ForwardKL)
    return teacher != "zero" or not divergence.needs_teacher_support


CASES = tuple((d, teacher) for d in DIVERGENCES for teacher in TEACHERS if accepts(teacher, d))
LISTED_CASES = tuple((d, teacher) for d, teacher in CASES if teacher in TAILS)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# A vector holds 4, 8 or 16 floats: sizes below, at and above each, and above two of the widest. A tile
# holds 512: one and a part, and four with a rest of less than a vector.
VOCABS = (1, 7, 8, 9, 15, 16, 17, 31, 33, 1000, 2051)


def randn(*shape, seed=0, scale=1.0, dtype=torch.float32):
    """Normal numbers that are the same, up to rounding, in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def top_k(log_p, k, *, seed=1, empty_slot=False, **options):
    """A TopKTeacher of the k largest log_p (..., V), in random order, one slot left empty if asked."""
    log_probs, ids = log_p.topk(k, -1)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    ids, log_probs = ids[..., order], log_probs[..., order]
    if empty_slot:
        ids, log_probs = ids.clone(), log_probs.clone()
        ids[..., k // 2], log_probs[..., k // 2] = -1, -torch.inf
    return fd.TopKTeacher(ids, log_probs, **options)


def make_teacher(
    kind, *shape, temperature=1.0, seed=1, scale=2.0, dtype=torch.float32, **transform
):
    """A teacher of a student of that shape (..., V); lists are in float32, float64 for float64."""
    *leading, vocab = shape
    if kind == "head":
        hidden = randn(*leading, 6, seed=seed, dtype=dtype)
        weight = randn(vocab, 6, seed=seed + 1, scale=scale / 2, dtype=dtype)
        return fd.TeacherHead(hidden, weight, randn(vocab, seed=seed + 2, dtype=dtype), **transform)
    logits = randn(*shape, seed=seed, scale=scale, dtype=dtype)
    if kind == "logits":
        return fd.TeacherLogits(logits, **transform)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    log_p = torch.log_softmax(logits.double() / temperature, -1).to(wide)
    k = max(1, min(vocab // 3, 40))
    if kind == "sampled":
        ids = torch.argsort(randn(*shape, seed=seed + 3), -1)[..., :k]  # distinct, some unlikely
        return fd.SampledTeacher(ids, log_p.gather(-1, ids).exp() * 1.3)
    return top_k(log_p, k, tail=kind, temperature=temperature, empty_slot=k > 2)


def linear_inputs(rows, width, vocab, dtype=torch.float32, bias=True, seed=0):
    """Hidden states and a head."""
    inputs = {
        "student_hidden": randn(rows, width, seed=seed, dtype=dtype),
        "student_weight": randn(vocab, width, seed=seed + 7, scale=0.5, dtype=dtype),
        "student_bias": randn(vocab, seed=seed + 8, dtype=dtype),
    }
    if not bias:
        del inputs["student_bias"]
    return inputs


def form_inputs(form, rows, vocab, dtype=torch.float32, seed=0):
    """(function, the student's tensors) of a form of the loss: "logits" or "linear"."""
    if form == "logits":
        inputs = {"student_logits": randn(rows, vocab, seed=seed, scale=2.0, dtype=dtype)}
        return fd.distillation_loss, inputs
    return fd.linear_distillation_loss, linear_inputs(rows, 13, vocab, dtype, seed=seed)


def double(teacher):
    """The same teacher in float64."""
    wide = {
        f.name: value.double()
        for f in fields(teacher)
        if isinstance(value := getattr(teacher, f.name), torch.Tensor) and value.is_floating_point()
    }
    return replace(teacher, **wide)


def on(device, value):
    """A tensor on a device, or a teacher or dict with its tensors there; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: on(device, item) for name, item in value.items()}
    if isinstance(value, fd.teachers.Teacher):
        return replace(value, **{f.name: on(device, getattr(value, f.name)) for f in fields(value)})
    return value


def run(function, inputs, teacher, labels=None, *, upstream=None, device=None, **config):
    """(loss, gradient by each input) of one call; `inputs` are the student's tensors by name.

    It runs on ``device``, or where the tensors are, and its results come to the CPU.
    """
    leaves = {name: tensor.detach() for name, tensor in inputs.items()}
    if device is not None:
        leaves, teacher, labels, config = (
            on(device, value) for value in (leaves, teacher, labels, config)
        )
    leaves = {name: tensor.requires_grad_() for name, tensor in leaves.items()}
    loss = function(**leaves, teacher=teacher, labels=labels, **config)
    if upstream is None and loss.dim() > 0:
        upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)
    upstream = on(loss.device, upstream)
    gradients = torch.autograd.grad(loss, tuple(leaves.values()), upstream)
    return loss.detach().cpu(), *(gradient.cpu() for gradient in gradients)


def truth(function, inputs, teacher, labels=None, **config):
    """`run` of the reference in float64 on the same numbers."""
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    return run(function, wide, double(teacher), labels, **config)


def rows(student, teacher, divergence="forward_kl", *, reduction="none", **config):
    """(values, gradient by the logits) of a logits loss by row, or reduced."""
    inputs, config = {"student_logits": student}, {"divergence": divergence, **config}
    return run(fd.distillation_loss, inputs, teacher, reduction=reduction, **config)


def true_rows(student, teacher, divergence, *, reduction="none", **config):
    """`rows` of the reference in float64."""
    teacher = fd.TeacherLogits(teacher) if isinstance(teacher, torch.Tensor) else teacher
    inputs, config = {"student_logits": student}, {"divergence": divergence, **config}
    return truth(reference.distillation_loss, inputs, teacher, reduction=reduction, **config)


def close(actual, exact, rtol=1e-5, atol=1e-6):
    """Assert that all of the results are, in float64."""
    for a, b in zip(actual, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol)


def assert_half_precision_is_read_and_written(half, device=None):
    """Every number: the cross entropy of (x, 0) with label 0 has the gradient sigmoid(-x) by the 0."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(half)
    x = every[every.isfinite()]
    student = torch.stack([x, torch.zeros_like(x)], -1)
    value, gradient = run(
        fd.distillation_loss, {"student_logits": student}, student,
        torch.zeros(x.numel(), dtype=torch.int64), soft_weight=0.0, hard_weight=1.0,
        reduction="none", upstream=torch.ones(x.numel()), device=device,
    )  # fmt: skip
    exact = torch.nn.functional.softplus(-x.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
    exact, info = torch.sigmoid(-x.double()), torch.finfo(half)
    half_a_place = info.eps / 2 * exact.clamp_min(info.smallest_normal)
    underflow = 2.0**-125  # the exponential is zero below
    error = (gradient[:, 1].double() - exact).abs()
    assert (error <= half_a_place + 1e-5 * exact + underflow).all()


def error_name(value):
    """The name of a parameter of a table of errors: its message."""
    return value if isinstance(value, str) else ""


def error(value, true):
    """The largest error."""
    return (value.double() - true.double()).abs().max()


def assert_not_worse(
    function, inputs, teacher, labels=None, *, log_prob=0.0, device=None, **config
):
    """Values and all gradients: at most torch's own error in that dtype, and a few roundings.

    A log-probability of size ``log_prob`` is rounded by eps times that, which is then the relative
    error of the probability. Both run on ``device``, the truth on the CPU.
    """
    peer, config = getattr(reference, function.__name__), {"reduction": "none", **config}
    ours = run(function, inputs, teacher, labels, device=device, **config)
    theirs = run(peer, inputs, teacher, labels, device=device, **config)
    true = truth(peer, inputs, teacher, labels, **config)
    dtype = next(iter(inputs.values())).dtype
    arithmetic = torch.promote_types(dtype, torch.float32)
    for what, own, other, exact in zip(("value", *inputs), ours, theirs, true, strict=True):
        assert own.dtype == (arithmetic if what == "value" else dtype)
        eps, storage = torch.finfo(arithmetic).eps, torch.finfo(own.dtype).eps / 2
        slope = 1.0 if what == "value" else max(1.0, 1.0 / config.get("temperature", 1.0))
        relative = (32 + log_prob) * eps + storage
        allowed = relative * exact.abs().max() + 4 * eps * slope
        if other.isfinite().all():
            allowed += 2 * error(other, exact)
        assert error(own, exact) <= allowed, what


def assert_autocast_computes_as_linear_does(inputs, dtype, reduction, device, share, roundings):
    """float32 parameters: rounded operands, logits as good as F.linear's, float32 gradients.

    The error is at most ``share`` of torch's, and ``roundings``.
    """
    rows, vocab = inputs["student_hidden"].shape[0], inputs["student_weight"].shape[0]
    teacher = make_teacher("head", rows, vocab)
    with torch.autocast(device, dtype=dtype):
        ours, theirs = (
            run(loss, inputs, teacher, reduction=reduction, device=device)
            for loss in (fd.linear_distillation_loss, reference.linear_distillation_loss)
        )
    rounded = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    head = fd.TeacherHead(*(t.to(dtype) for t in (teacher.hidden, teacher.weight, teacher.bias)))
    exact = truth(reference.linear_distillation_loss, rounded, head, reduction=reduction)
    for own, other, true in zip(ours, theirs, exact, strict=True):
        assert own.dtype == torch.float32
        assert error(own, true) <= share * error(other, true) + roundings
    plain = truth(reference.linear_distillation_loss, inputs, teacher, reduction=reduction)
    assert error(ours[0], plain[0]) > 1e-5
