"""The operators as torch.library wants them, and both losses under torch.compile."""

import pytest
import torch
from cases import TEACHERS, make_teacher, randn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import fastdistill as fd
from fastdistill import _autograd

# Dynamo instantiates torch.autograd.Function itself when it traces one.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

N, V, D = 6, 33, 8
LABELS = torch.tensor([0, 5, -100, 7, 32, 1])


@pytest.fixture
def recorded(monkeypatch):
    """The arguments of every op that is called."""
    calls, ops = [], torch.ops.fastdistill

    class Recorder:
        def __getattr__(self, name):
            def call(*args):
                calls.append((getattr(ops, name).default, args))
                return getattr(ops, name)(*args)

            return call

    monkeypatch.setattr(_autograd, "_fd", Recorder())
    return calls


def student(form, **options):
    """The student's tensors of a form of the loss."""
    if form == "logits":
        return {"student_logits": randn(N, V, **options)}
    return {
        "student_hidden": randn(N, D, **options),
        "student_weight": randn(V, D, seed=1, **options),
        "student_bias": randn(V, seed=2, **options),
    }


LOSSES = {"logits": fd.distillation_loss, "linear": fd.linear_distillation_loss}


# Both reductions once; every teacher once. What is compiled depends on each, not on the pair.
PAIRS = [(teacher, "none") for teacher in TEACHERS] + [("logits", "mean"), ("sampled", "mean")]


@pytest.mark.parametrize(("teacher", "reduction"), PAIRS)
@pytest.mark.parametrize("form", LOSSES)
def test_operators(teacher, form, reduction, recorded):
    """Schemas, fakes and dispatch agree with what the operators do."""
    inputs = {name: tensor.requires_grad_() for name, tensor in student(form).items()}
    loss = LOSSES[form](
        **inputs, teacher=make_teacher(teacher, N, V), labels=LABELS, hard_weight=0.5,
        reduction=reduction, return_metrics=False,
    )  # fmt: skip
    loss.sum().backward()
    assert recorded
    for op, args in recorded:
        plain = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
        opcheck(op, plain)


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


def check_compiled(compiled, function, inputs, *args):
    """Loss and gradients of the compiled function equal those of the function."""
    results = []
    for call in (compiled, function):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        loss = call(*leaves, *args)
        loss.sum().backward()
        results.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind_", "reduction"), PAIRS)
@pytest.mark.parametrize("form", LOSSES)
def test_compiled_loss_is_the_eager_loss(form, kind_, reduction, compiler):
    """In one graph, forward and backward."""
    teacher, names = make_teacher(kind_, N, V), tuple(student(form))

    def function(*tensors):
        inputs = dict(zip(names, tensors, strict=True))
        return LOSSES[form](
            **inputs, teacher=teacher, labels=LABELS, hard_weight=0.5, reduction=reduction
        )

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)
    check_compiled(compiled, function, student(form).values())


@pytest.mark.parametrize("form", LOSSES)
def test_number_of_tokens_is_dynamic(form, compiler):
    """A new number of tokens compiles nothing new."""

    def function(first, *rest):
        *head, teacher = rest
        return LOSSES[form](first, *head, teacher)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)
    graphs = None
    for tokens in (6, 11, 3, 64):
        first, *head = list(student(form).values())[:2]
        first = first[:1].expand(tokens, -1).contiguous()
        check_compiled(compiled, function, [first, *head], randn(tokens, V, seed=5))
        assert graphs in (None, compiler.frame_count)
        graphs = compiler.frame_count


@pytest.mark.parametrize("known", [fd.JensenShannon(0.1), fd.AlphaBeta(0.5, 0.7)], ids=repr)
def test_divergence_with_parameters_compiles(known, compiler):
    """Parameters are constants of the graph, for one that is made inside it too."""
    teacher = randn(N, V, seed=5)

    def function(logits):
        made = type(known)(*known.parameters)
        return sum(fd.distillation_loss(logits, teacher, divergence=d) for d in (known, made))

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)
    check_compiled(compiled, function, [randn(N, V)])


def test_compiled_module_under_autocast(compiler):
    module, teacher = fd.LinearDistillationLoss(temperature=2.0), randn(N, V, seed=5)

    def function(hidden, weight):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(hidden, weight, teacher)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)
    check_compiled(compiled, function, list(student("linear").values())[:2])
