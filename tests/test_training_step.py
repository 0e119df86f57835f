"""What torch wraps around a step: checkpointing, loss scaling, hooks, swapped parameters, no graph."""

import pytest
import torch
from small_models import (
    Student,
    V,
    assert_same,
    linear_loss,
    llama,
    loss_and_gradients,
    teacher_of,
    tokens,
)
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fastdistill as fd
from fastdistill import reference

FORMS = ("logits", "linear")
REDUCTIONS = ("mean", "none")


def loss_of(form, student, ids, labels, **options):
    teacher = teacher_of("head", ids)
    if form == "linear":
        return linear_loss(student, student(ids), teacher, labels, **options)
    return fd.distillation_loss(student.logits(ids), teacher, labels, hard_weight=0.5, **options)


# ---- checkpointing --------------------------------------------------------------------------------

RECOMPUTED = {"backbone": ["backbone"], "loss": ["loss"], "both": ["backbone", "loss"]}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("part", RECOMPUTED)
def test_checkpointing_changes_no_gradient(part, reduction, use_reentrant):
    """Of the loss, or of what it is given."""
    student, (ids, labels), passes = Student(), tokens(), []
    teacher = teacher_of("head", ids)

    def backbone(embedded):
        passes.append("backbone")
        return student.norm(embedded + student.block(embedded))

    def loss(hidden):
        passes.append("loss")
        return linear_loss(student, hidden, teacher, labels, reduction=reduction).sum()

    def step(recomputed):
        def call(name, function, tensor):
            if name != recomputed:
                return function(tensor)
            return checkpoint(function, tensor, use_reentrant=use_reentrant)

        def both(embedded):
            return call("loss", loss, call("backbone", backbone, embedded))

        return loss_and_gradients(student, call("both", both, student.embedding(ids)))

    expected = step(None)
    passes.clear()
    assert_same(step(part), expected)
    assert passes == ["backbone", "loss", *RECOMPUTED[part]]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_of_a_transformers_model(use_reentrant):
    pytest.importorskip("transformers", reason="needs fastdistill[distill]")
    model, (ids, labels), passes = llama().train(), tokens(), []
    teacher = teacher_of("head", ids)
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append("layer"))

    def step():
        student = fd.StudentHead.from_model(model, input_ids=ids)
        return loss_and_gradients(model, student.loss(teacher, labels, hard_weight=0.5))

    expected = step()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same(step(), expected)
    assert len(passes) == 1 + 2


# ---- loss scaling ---------------------------------------------------------------------------------

TOKENS = 2**26
"""To divide by: float16 gradients by logits and hidden states are then zero."""


def scaled_step(form, dtype, scale):
    """(student with unscaled gradients, scaler, optimizer) of a step under autocast."""
    student, (ids, labels) = Student(dtype), tokens()
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(form, student, ids, labels, num_items=TOKENS)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    return student, scaler, optimizer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype_", "rounding"), [(torch.float16, 2**-8), (torch.bfloat16, 2**-5)])
def test_unscaled_gradients_are_the_gradients(form, dtype_, rounding):
    student, (ids, labels) = Student(), tokens()
    _, *exact = loss_and_gradients(student, loss_of(form, student, ids, labels, num_items=TOKENS))
    half, *_ = scaled_step(form, dtype_, 2.0**20)
    for (name, parameter), gradient in zip(half.named_parameters(), exact, strict=True):
        assert (parameter.grad - gradient).norm() <= rounding * gradient.norm(), name


@pytest.mark.parametrize("form", FORMS)
def test_without_scaling_they_underflow(form):
    """What the test above would not see with fewer tokens."""
    student, *_ = scaled_step(form, torch.float16, 1.0)
    assert not student.embedding.weight.grad.any()


@pytest.mark.parametrize("form", FORMS)
def test_step_with_an_overflow_is_skipped(form):
    student, scaler, optimizer = scaled_step(form, torch.float16, 2.0**60)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert_same(student.parameters(), before, rtol=0, atol=0)
    assert scaler.get_scale() == 2.0**59


# ---- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_functional_call(form):
    """Gradients go to the parameters that are put in, and only there."""
    student, (ids, labels) = Student(), tokens()
    given = {
        name: (0.9 * parameter.detach()).requires_grad_()
        for name, parameter in student.named_parameters()
    }

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.student = student

        def forward(self):
            return loss_of(form, self.student, ids, labels)

    loss = functional_call(Step(), {f"student.{name}": value for name, value in given.items()}, ())
    ours = [loss.detach(), *torch.autograd.grad(loss, tuple(given.values()))]
    assert all(parameter.grad is None for parameter in student.parameters())
    student.load_state_dict(given)
    assert_same(ours, loss_and_gradients(student, loss_of(form, student, ids, labels)))


@pytest.mark.parametrize("form", FORMS)
def test_optimizer_in_the_backward(form):
    """A tied weight has one gradient, complete when its hook is called."""
    student, (ids, labels), seen = Student(), tokens(), []
    student.head.weight = student.embedding.weight
    _, expected, *_ = loss_and_gradients(student, loss_of(form, student, ids, labels))

    def update(parameter):
        seen.append(parameter.grad.clone())
        parameter.data -= parameter.grad
        parameter.grad = None

    before = student.head.weight.detach().clone()
    student.zero_grad()
    student.head.weight.register_post_accumulate_grad_hook(update)
    loss_of(form, student, ids, labels).backward()
    assert_same(seen, [expected])
    assert_same([student.embedding.weight.detach()], [before - expected])


# ---- no graph, and no graph of the graph ----------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation(mode, reduction, form):
    student, (ids, labels) = Student(), tokens()
    options = {"reduction": reduction, "return_metrics": True}
    with mode():
        loss, metrics = loss_of(form, student, ids, labels, **options)
    expected, expected_metrics = loss_of(form, student, ids, labels, **options)
    assert not loss.requires_grad
    assert expected.requires_grad
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(vars(metrics), vars(expected_metrics))


@pytest.mark.parametrize("form", FORMS)
def test_teacher_of_inference_mode(form):
    student, (ids, labels) = Student(), tokens()
    with torch.inference_mode():
        teacher = teacher_of("logits", ids)
    assert teacher.logits.is_inference()
    if form == "linear":
        loss = linear_loss(student, student(ids), teacher, labels)
    else:
        loss = fd.distillation_loss(student.logits(ids), teacher, labels, hard_weight=0.5)
    loss.backward()
    assert student.embedding.weight.grad.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivatives_are_refused(reduction, form):
    """Zeros, which a gradient that passes for a constant would give, are not the second derivative."""
    student, (ids, labels) = Student(), tokens()
    loss = loss_of(form, student, ids, labels, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="differentiated once, got create_graph=True"):
        torch.autograd.grad(loss, tuple(student.parameters()), create_graph=True)


def test_functorch_transforms_are_refused():
    logits = torch.ones(3, V)
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda student: fd.distillation_loss(student, logits))(logits)


def test_the_reference_has_second_derivatives():
    student = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    teacher = fd.TeacherLogits(student.flip(0))
    assert torch.autograd.gradgradcheck(
        lambda logits: reference.distillation_loss(logits, teacher), student.requires_grad_()
    )
