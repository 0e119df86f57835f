"""How the losses live with a GPU: streams, graphs, devices, compilers, what is not checked."""

from dataclasses import replace

import pytest
import torch
from cases import (
    assert_autocast_computes_as_linear_does,
    error,
    form_inputs,
    make_teacher,
    on,
    randn,
    run,
    truth,
)

import fastdistill as fd
from fastdistill import _ops, reference

on_gpu = pytest.mark.cuda
pytestmark = [
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
    # Dynamo instantiates torch.autograd.Function itself when it traces one.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    # Inductor imports a module of torch that uses what torch deprecates.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
]

DEVICE = "cuda"
ROWS, VOCAB = 12, 4097
LISTS = ("bucket", "renormalize", "zero", "uniform", "sampled")
SHORT_DELAY, LONG_DELAY = 10**8, 2 * 10**9  # cycles of a clock of 1 to 2 GHz

forms = pytest.mark.parametrize("form", ["logits", "linear"])
reductions = pytest.mark.parametrize("reduction", ["none", "mean"])


class Step:
    """Forward and backward of a loss with labels, mask and weights, on tensors that stay."""

    def __init__(self, form, kind, *, device, seed=0, dtype=torch.float32, **config):
        self.function, inputs = form_inputs(form, ROWS, VOCAB, dtype, seed)
        self.inputs = {name: tensor.requires_grad_() for name, tensor in on(device, inputs).items()}
        self.teacher = on(device, make_teacher(kind, ROWS, VOCAB, seed=seed + 1))
        rows = torch.arange(ROWS)
        tokens = {"labels": 7 * rows, "mask": rows % 4 != seed, "weights": 1.0 + rows / ROWS}
        self.config = on(device, {"hard_weight": 0.5, **tokens, **config})
        if form == "linear":
            self.config["chunk_size"] = 5

    def __call__(self):
        loss = self.function(**self.inputs, teacher=self.teacher, **self.config)
        loss = loss[0] if isinstance(loss, tuple) else loss
        leaves = tuple(self.inputs.values())
        return loss.detach(), *torch.autograd.grad(loss, leaves, torch.ones_like(loss))

    def tensors(self):
        owners = (self.inputs, vars(self.teacher), self.config)
        values = (value for owner in owners for value in owner.values())
        return [value.detach() for value in values if isinstance(value, torch.Tensor)]

    def overwrite(self, other):
        for own, new in zip(self.tensors(), other.tensors(), strict=True):
            own.copy_(new)


def assert_right(results, *arguments, **config):
    """The results of a step on the GPU are those of the CPU."""
    for own, expected in zip(results, Step(*arguments, device="cpu", **config)(), strict=True):
        torch.testing.assert_close(own.cpu(), expected, rtol=1e-4, atol=1e-6)


# ---- nothing waits -----------------------------------------------------------------------------


@on_gpu
@forms
@reductions
@pytest.mark.parametrize("metrics", [False, True], ids=["loss", "metrics"])
@pytest.mark.parametrize("dtype_", [torch.float32, torch.bfloat16, torch.float16])
def test_host_waits_for_nothing(kind, form, reduction, metrics, dtype_):
    step = Step(
        form, kind, device=DEVICE, dtype=dtype_, reduction=reduction, return_metrics=metrics
    )
    step()  # makes what is made once: handles, workspaces
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@forms
@reductions
def test_graph_is_replayed_on_other_data(kind, form, reduction):
    """Other logits, teacher, labels and weights, and another mask."""
    config = {"reduction": reduction}
    step, stream = Step(form, kind, device=DEVICE, **config), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for seed in (1, 2, 0):
        step.overwrite(Step(form, kind, device=DEVICE, seed=seed, **config))
        graph.replay()
        assert_right(results, form, kind, seed=seed, **config)


# ---- streams and devices -----------------------------------------------------------------------


@on_gpu
@forms
@reductions
def test_all_work_is_queued_on_the_current_stream(kind, form, reduction):
    """Its inputs are written there, late: work on another stream would read zeros."""
    config = {"reduction": reduction}
    step, source = (Step(form, kind, device=DEVICE, **config) for _ in range(2))
    for tensor in step.inputs.values():
        tensor.detach().zero_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SHORT_DELAY)
        step.overwrite(source)
        results = step()
    stream.synchronize()
    assert_right(results, form, kind, **config)


@on_gpu
@forms
def test_streams_do_not_wait_for_each_other(form):
    step, busy, free = Step(form, "head", device=DEVICE), torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(free):
        step()
    torch.cuda.synchronize()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(LONG_DELAY)
    with torch.cuda.stream(free):
        results = step()
    free.synchronize()
    assert not busy.query()
    torch.cuda.synchronize()
    assert_right(results, form, "head")


@on_gpu
@forms
def test_two_streams_at_once(kind, form):
    steps = [Step(form, kind, device=DEVICE, seed=seed) for seed in (0, 1)]
    streams = [torch.cuda.Stream() for _ in steps]
    torch.cuda.synchronize()
    results = []
    for _ in range(10):
        for step, stream in zip(steps, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(step())
    torch.cuda.synchronize()
    for number, result in enumerate(results):
        assert_right(result, form, kind, seed=number % 2)


@on_gpu
@forms
def test_tensors_on_another_than_the_current_device(kind, form):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    step = Step(form, kind, device="cuda:1")
    with torch.cuda.device(0):
        results = step()
        assert torch.cuda.current_device() == 0
    assert all(result.device.index == 1 for result in results)
    assert_right(results, form, kind)


@on_gpu
@forms
@reductions
def test_the_same_bits_from_run_to_run(kind, form, reduction):
    step = Step(form, kind, device=DEVICE, dtype=torch.bfloat16, reduction=reduction)
    first = step()
    for _ in range(5):
        assert all(map(torch.equal, step(), first))


# ---- what only data can tell -------------------------------------------------------------------


def assert_only_row_2_is_nan(function, inputs, teacher, clean, **config):
    results = run(function, inputs, teacher, reduction="none", device=DEVICE, **config)
    others = torch.arange(ROWS) != 2
    assert results[0][2].isnan()
    assert torch.equal(results[0][others], clean[0][others])
    assert torch.equal(results[1][others], clean[1][others])
    for reduction in ("sum", "mean"):
        loss, *_ = run(function, inputs, teacher, reduction=reduction, device=DEVICE, **config)
        assert loss.isnan()


@on_gpu
@forms
@pytest.mark.parametrize("kind_", LISTS)
@pytest.mark.parametrize("wrong", [VOCAB, 2**40, -2, -(2**40), "repeated"])
def test_wrong_id_makes_its_row_nan(kind_, form, wrong):
    """Far ones too, which would end the process if they were read or written."""
    function, inputs = form_inputs(form, ROWS, VOCAB)
    teacher = make_teacher(kind_, ROWS, VOCAB)
    clean = run(function, inputs, teacher, reduction="none", device=DEVICE)
    for slot in (0, -1):
        ids = teacher.ids.clone()
        ids[2, slot] = ids[2, 1] if wrong == "repeated" else wrong
        assert_only_row_2_is_nan(function, inputs, replace(teacher, ids=ids), clean)


@on_gpu
@forms
@pytest.mark.parametrize("wrong", [VOCAB, 2**40, -1, -(2**40)])
def test_wrong_label_makes_its_row_nan(kind, form, wrong):
    function, inputs = form_inputs(form, ROWS, VOCAB)
    teacher, labels, config = (
        make_teacher(kind, ROWS, VOCAB),
        torch.arange(ROWS),
        {"hard_weight": 1},
    )
    clean = run(function, inputs, teacher, labels, reduction="none", device=DEVICE, **config)
    labels[2] = wrong
    assert_only_row_2_is_nan(function, inputs, teacher, clean, labels=labels, **config)
    not_counted = {"mask": torch.arange(ROWS) != 2, "reduction": "none", "device": DEVICE}
    value, *_ = run(function, inputs, teacher, labels, **config, **not_counted)
    assert value.isfinite().all()


# ---- torch around it ---------------------------------------------------------------------------


@on_gpu
@forms
@reductions
def test_compiled_loss_is_the_eager_loss(kind, form, reduction):
    """In one graph, forward and backward."""
    step = Step(form, kind, device=DEVICE, reduction=reduction)
    expected = step()
    torch._dynamo.reset()
    step.function = torch.compile(step.function, fullgraph=True, dynamic=True, backend="aot_eager")
    for own, eager in zip(step(), expected, strict=True):
        torch.testing.assert_close(own, eager, rtol=1e-6, atol=1e-7)


@on_gpu
@reductions
@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float16])
def test_autocast_computes_as_linear_does(dtype_, reduction):
    _, inputs = form_inputs("linear", 64, 33)
    assert_autocast_computes_as_linear_does(inputs, dtype_, reduction, DEVICE, 2.0, 1e-6)


@on_gpu
def test_logits_that_are_not_rounded():
    """logits_dtype=float32: a product of half-precision operands, exact to float32."""
    for dtype in (torch.bfloat16, torch.float16):
        function, inputs = form_inputs("linear", 11, 33, dtype)
        teacher, eps = make_teacher("head", 11, 33, dtype=dtype), torch.finfo(dtype).eps
        config = {"logits_dtype": torch.float32, "reduction": "none"}
        ours = run(function, inputs, teacher, device=DEVICE, **config)
        exact = truth(reference.linear_distillation_loss, inputs, teacher, **config)
        torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-5)
        for own, true in zip(ours[1:], exact[1:], strict=True):
            assert error(own, true) <= 2 * eps * true.abs().max()


@pytest.mark.skipif(bool(getattr(fd._C, "CUDA", "")), reason="this build has a CUDA backend")
def test_build_without_the_backend_says_how_to_get_it():
    with pytest.raises(RuntimeError, match="FD_CUDA=ON"):
        _ops._no_cuda(randn(1))
