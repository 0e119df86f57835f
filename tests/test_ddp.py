"""Data parallel processes take the steps that one process takes on the whole batch.

DistributedDataParallel averages the gradients of its W processes. The mean over all counted tokens is
therefore reached by ``num_items`` = their number in all processes and micro-batches, divided by W.
"""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
from processes import run_together
from small_models import Student, assert_same, linear_loss, llama, teacher_of, tokens
from torch.nn.parallel import DistributedDataParallel

import fastdistill as fd

PROCESSES, STEPS, SEQUENCES = 2, 2, 4
UNCOUNTED = (4, 3, 1, 0)
"""More labels of each sequence without one: one process has 0 + 1 counted tokens, the other 3 + 4."""

MODELS = ("student", "llama", "llama_tied")


def batch(step):
    """Ids, labels and the teacher's logits of all sequences."""
    ids, labels = tokens(SEQUENCES, seed=step)
    for sequence, uncounted in enumerate(UNCOUNTED):
        labels[sequence, :uncounted] = -100
    return ids, labels, teacher_of("logits", ids, seed=step + 10).logits


def make(name):
    return Student() if name == "student" else llama(tied=name == "llama_tied")


def loss_of(model, ids, labels, teacher, num_items=None):
    """The loss of a model within or without DistributedDataParallel, which must be called itself."""
    inner = getattr(model, "module", model)
    if isinstance(inner, Student):
        return linear_loss(inner, model(ids), teacher, labels, num_items=num_items)
    student = fd.StudentHead.from_model(model, input_ids=ids)
    return student.loss(teacher, labels, hard_weight=0.5, num_items=num_items)


def train(model, backward):
    """The weights after some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, *batch(step))
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def backward_alone(model, *tensors):
    loss_of(model, *tensors).backward()


def backward_of_share(model, *tensors, rank, micro_batches):
    """Of a process's own sequences, gradients reduced with the last of its micro-batches."""
    shares = [tensor.chunk(PROCESSES)[rank] for tensor in tensors]
    counted = (shares[1] != -100).sum().double()
    dist.all_reduce(counted)
    parts = list(zip(*(share.chunk(micro_batches) for share in shares), strict=True))
    for part in parts:
        with nullcontext() if part is parts[-1] else model.no_sync():
            loss_of(model, *part, num_items=counted / PROCESSES).backward()


def process(rank, names):
    weights = {}
    for name in names:
        for micro_batches in (1, 2):
            backward = partial(backward_of_share, rank=rank, micro_batches=micro_batches)
            weights[name, micro_batches] = train(DistributedDataParallel(make(name)), backward)
    return weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of every model that can be made here, from one start of the processes."""
    try:
        import transformers  # noqa: F401

        names = MODELS
    except ImportError:
        names = MODELS[:1]
    return run_together(process, PROCESSES, tmp_path_factory.mktemp("ddp"), names)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_processes_take_the_steps_of_one(name, micro_batches, weights):
    if name != "student":
        pytest.importorskip("transformers", reason="needs fastdistill[distill]")
    model = make(name)
    assert_same(weights[name, micro_batches], train(model, backward_alone))
