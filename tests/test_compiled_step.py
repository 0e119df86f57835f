"""A training step under torch.compile: model, loss and backward in one graph, compiled once."""

import pytest
import torch
from small_models import (
    Student,
    assert_same,
    linear_loss,
    llama,
    loss_and_gradients,
    teacher_of,
    tokens,
)
from torch._dynamo.testing import CompileCounterWithBackend

import fastdistill as fd

pytestmark = [
    # Dynamo instantiates torch.autograd.Function itself when it traces one.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    # Inductor imports what is scripted.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning"),
]


@pytest.fixture
def compile_with():
    """compile_with(function, backend) in one graph: (compiled, what counts the compilations)."""
    torch._dynamo.reset()

    def compiled(function, backend="aot_eager"):
        counter = CompileCounterWithBackend(backend)
        return torch.compile(function, fullgraph=True, backend=counter), counter

    yield compiled
    torch._dynamo.reset()


def teacher_tensors(kind, ids):
    """What a step has in its hands: (class, tensors)."""
    teacher = teacher_of(kind, ids)
    names = ("hidden", "weight", "bias") if kind == "head" else ("ids", "log_probs")
    return type(teacher), [getattr(teacher, name) for name in names]


def make_step(student, make_teacher):
    """The forward half: the loss, and metrics."""

    def step(ids, labels, *tensors):
        loss, metrics = linear_loss(
            student, student(ids), make_teacher(*tensors), labels, return_metrics=True
        )
        return loss, metrics.soft_loss, metrics.hard_loss, metrics.student_entropy, metrics.counted

    return step


def backward_inside(step):
    def whole(*tensors):
        loss, *metrics = step(*tensors)
        loss.backward()
        return loss.detach(), *metrics

    return whole


def results(student, step, tensors):
    """Everything that a step gives: values, metrics, gradients."""
    student.zero_grad()
    loss, *metrics = step(*tensors)
    if loss.requires_grad:
        loss.backward()
    return [loss.detach(), *metrics, *(parameter.grad for parameter in student.parameters())]


INDUCTOR = (
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.__version__.startswith("2.6."),
        reason="Inductor of torch 2.6 loses gradients of ids that an embedding is given twice",
    ),
)


@pytest.mark.parametrize(
    ("kind_", "backend"),
    [
        ("head", "aot_eager"),
        ("bucket", "aot_eager"),
        pytest.param("head", "inductor", marks=INDUCTOR),
    ],
)
def test_model_and_loss_are_one_graph(kind_, backend, compile_with):
    student, (ids, labels) = Student(), tokens()
    make_teacher, teacher = teacher_tensors(kind_, ids)
    step = make_step(student, make_teacher)
    compiled, counter = compile_with(step, backend)
    inputs = (ids, labels, *teacher)
    assert_same(results(student, compiled, inputs), results(student, step, inputs))
    assert counter.frame_count == 1


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="torch cannot trace backward()"
)
@pytest.mark.parametrize("kind_", ["head", "bucket"])
def test_backward_is_in_the_graph_too(kind_, compile_with):
    student, (ids, labels) = Student(), tokens()
    make_teacher, teacher = teacher_tensors(kind_, ids)
    whole = backward_inside(make_step(student, make_teacher))
    compiled, counter = compile_with(whole)
    inputs = (ids, labels, *teacher)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        ours = results(student, compiled, inputs)
    assert_same(ours, results(student, whole, inputs))
    assert counter.frame_count == 1


# ---- lengths --------------------------------------------------------------------------------------


def logits_loss(student, ids, teacher, labels, mask):
    return fd.distillation_loss(
        student.logits(ids), teacher, labels, mask=mask, hard_weight=0.5, return_metrics=True
    )


def hidden_loss(student, ids, teacher, labels, mask):
    return linear_loss(student, student(ids), teacher, labels, mask=mask, return_metrics=True)


@pytest.mark.parametrize(("marked", "compilations"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("form", [logits_loss, hidden_loss])
def test_a_new_length_compiles_nothing_new(form, marked, compilations, compile_with):
    """The second length makes the dimension dynamic, unless the first is marked as that."""
    student = Student()

    def step(*tensors):
        loss, metrics = form(student, *tensors)
        return loss, metrics.soft_loss, metrics.hard_loss, metrics.forward_kl, metrics.counted

    compiled, counter = compile_with(step)
    for length in (5, 7, 3, 64, 33):
        ids, labels = tokens(length=length, seed=length)
        inputs = (ids, teacher_of("logits", ids).logits, labels, ids % 3 > 0)
        if marked and length == 5:
            for tensor in inputs:
                torch._dynamo.mark_dynamic(tensor, 1)
        assert_same(results(student, compiled, inputs), results(student, step, inputs))
    assert counter.frame_count == compilations


# ---- a model of transformers ----------------------------------------------------------------------


def test_llama_and_loss_are_one_graph(compile_with):
    pytest.importorskip("transformers", reason="needs fastdistill[distill]")
    model, (ids, labels) = llama(), tokens()
    teacher = teacher_of("head", ids)

    def step(ids, labels):
        hidden = model.model(ids).last_hidden_state
        return fd.linear_distillation_loss(
            hidden, model.lm_head.weight, teacher, labels, hard_weight=0.5
        )

    compiled, counter = compile_with(step)
    for _ in range(2):
        ours = loss_and_gradients(model, compiled(ids, labels))
        assert_same(ours, loss_and_gradients(model, step(ids, labels)))
    assert counter.frame_count == 1


@pytest.mark.parametrize("first", ["logits", "loss"])
def test_a_compiled_model_gives_logits_and_losses_in_turn(first, compile_with):
    """Neither graph is taken for the other."""
    pytest.importorskip("transformers", reason="needs fastdistill[distill]")
    model, (ids, labels) = llama(), tokens()
    teacher, inputs = teacher_of("head", ids), {"input_ids": ids, "use_cache": False}
    compiled, counter = compile_with(model)

    def loss(model):
        return fd.StudentHead.from_model(model, **inputs).loss(teacher, labels, hard_weight=0.5)

    expected_loss = loss_and_gradients(model, loss(model))
    expected_logits = model(**inputs).logits
    for turn in range(4):
        if (turn % 2 == 0) == (first == "logits"):
            assert_same([compiled(**inputs).logits], [expected_logits])
        else:
            assert_same(loss_and_gradients(model, loss(compiled)), expected_loss)
    assert counter.frame_count == 2


def test_from_model_of_both_sides_is_one_graph(compile_with):
    pytest.importorskip("transformers", reason="needs fastdistill[distill]")
    model, other, (ids, labels) = llama(), llama(tied=False), tokens()

    def step(ids, labels):
        teacher = fd.TeacherHead.from_model(other, input_ids=ids)
        student = fd.StudentHead.from_model(model, input_ids=ids)
        return student.loss(teacher, labels, hard_weight=0.5)

    compiled, counter = compile_with(step)
    for _ in range(2):
        ours = loss_and_gradients(model, compiled(ids, labels))
        assert_same(ours, loss_and_gradients(model, step(ids, labels)))
    assert counter.frame_count == 1
    assert "forward" not in vars(model.lm_head)
