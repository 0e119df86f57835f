"""Several processes, each with some of the tokens, compute what one computes with all of them."""

import pytest
import torch
import torch.distributed as dist
from cases import form_inputs, make_teacher
from processes import run_together

PROCESSES, N, V = 4, 11, 33
SHARES = (0, 2, 3, 3, 11)  # uneven, one without a token
LABELS = torch.tensor([0, 5, -100, 7, 32, 1, 2, -100, 9, 30, 4])


def shard(value, rows):
    """The rows of what has a row for each token."""
    return value[rows] if isinstance(value, torch.Tensor) and value.shape[:1] == (N,) else value


def loss_and_gradients(form, kind, rows, num_items):
    function, inputs = form_inputs(form, N, V)
    teacher = make_teacher(kind, N, V)
    parts = {name: shard(tensor, rows) for name, tensor in inputs.items()}
    given = {name: shard(value, rows) for name, value in vars(teacher).items()}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parts.items()}
    loss = function(
        **leaves, teacher=type(teacher)(**given), labels=LABELS[rows], hard_weight=0.5,
        num_items=num_items,
    )  # fmt: skip
    return [loss.detach(), *torch.autograd.grad(loss, tuple(leaves.values()))]


def process(rank, form, kind):
    rows = slice(SHARES[rank], SHARES[rank + 1])
    counted = (LABELS[rows] != -100).sum().double()
    dist.all_reduce(counted)
    loss, by_tokens, *by_parameters = loss_and_gradients(form, kind, rows, counted)
    for shared in (loss, *by_parameters):
        dist.all_reduce(shared)
    gathered = [None] * PROCESSES
    dist.all_gather_object(gathered, by_tokens)
    return [loss, torch.cat(gathered), *by_parameters]


@pytest.mark.parametrize(("form", "kind_"), [("logits", "bucket"), ("linear", "head")])
def test_processes_that_share_the_tokens_are_one(form, kind_, tmp_path):
    together = run_together(process, PROCESSES, tmp_path, form, kind_)
    alone = loss_and_gradients(form, kind_, slice(0, N), None)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-7)
