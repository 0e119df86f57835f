"""TRL's trainers with the loss of this package: the loss, gradients and logs of TRL's own path."""

import json
import random
from dataclasses import fields
from importlib.util import find_spec

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trl_cases import (
    KINDS,
    PROMPT,
    VOCAB,
    assert_same,
    llama,
    loss_and_gradients,
    make_batch,
    make_trainer,
)

import fastdistill as fd

pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="needs TRL"),
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """The trainer of TRL and ours."""
    directory = tmp_path_factory.mktemp("trl")
    return request.param, *(
        make_trainer(request.param, side, directory) for side in ("TRL", "ours")
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_loss_and_gradients_are_trls(pair, beta, temperature):
    kind, *trainers = pair
    for trainer in trainers:
        trainer.beta, trainer.temperature = beta, temperature
    for num_items in (None, torch.tensor(31.0)):
        theirs, mine = (loss_and_gradients(t, make_batch(kind), num_items) for t in trainers)
        assert_same(mine, theirs)


def test_a_batch_without_a_token_that_counts_is_zero(pair):
    kind, *trainers = pair
    batch = make_batch(kind)
    mask, nothing = ("completion_mask", 0) if kind == "Distillation" else ("labels", -100)
    batch[mask] = torch.full_like(batch[mask], nothing)
    for trainer in trainers:
        loss, gradients = loss_and_gradients(trainer, batch)
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients.values())


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made while it lasts."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **kwargs or {})
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
        return results


def test_the_logits_of_the_heads_are_never_made(pair):
    kind, *trainers = pair
    sizes = []
    for trainer in trainers:
        batch = make_batch(kind, length=60)
        with Largest() as largest:
            loss_and_gradients(trainer, batch)
        sizes.append(largest.elements)
    theirs, mine = sizes
    assert theirs >= 2 * (60 - PROMPT) * VOCAB  # this vocabulary fits in one of TRL's tiles
    assert mine < (60 - PROMPT) * VOCAB


LOGGED = {field.name for field in fields(fd.Metrics)} - {
    "hard_loss", "teacher_mass", "student_mass",
}  # fmt: skip


def same_numbers(mine, theirs):
    """Everything that TRL logs, but for the times that it took."""
    timed = ("runtime", "per_second", "step_time", "flos")
    for name, value in theirs.items():
        if not name.endswith(timed):
            assert mine[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("kind_", KINDS)
def test_training_is_trls_and_logs_more(kind_, tmp_path):
    """Two steps of two micro-batches, some of them generated, and an evaluation after each."""
    trainers = []
    for side in ("TRL", "ours"):
        random.seed(1)
        mixed = {} if kind_ == "Distillation" else {"lmbda": 0.5}
        trainers.append(make_trainer(
            kind_, side, tmp_path, max_steps=2, gradient_accumulation_steps=2, beta=0.3,
            eval_strategy="steps", eval_steps=1, **mixed,
        ))  # fmt: skip
        trainers[-1].train()
    theirs, mine = (trainer.state.log_history for trainer in trainers)
    json.dumps(mine)
    for his, my in zip(theirs, mine, strict=True):
        same_numbers(my, his)
        prefix = "eval_" if "eval_loss" in my else ""
        added = {name.removeprefix(prefix) for name in my.keys() - his.keys()}
        assert added == (set() if "train_loss" in my else LOGGED)
    weights = [torch.cat([p.flatten() for p in t.model.parameters()]) for t in trainers]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-4)
    start = torch.cat([p.flatten() for p in llama(16, seed=0).parameters()])
    assert (weights[1] - start).abs().max() > 1e-2


@pytest.mark.parametrize("kind_", KINDS)
def test_logged_metrics_are_averages_over_tokens(kind_, tmp_path):
    """Batches of unequal numbers of tokens, each with another divisor than its number of tokens."""
    trainer = make_trainer(kind_, "ours", tmp_path, beta=0.0)
    total = counted = 0
    for length, num_items in ((10, None), (30, torch.tensor(17.0))):
        loss, _ = loss_and_gradients(trainer, make_batch(kind_, length), num_items)
        tokens = 2 * (length - PROMPT) - 3  # three of the batch's last tokens are padding
        total, counted = total + loss * (tokens if num_items is None else 17), counted + tokens
    logs = {}
    trainer.log(logs)
    assert logs["counted"] == counted
    assert logs["forward_kl"] == pytest.approx(float(total / counted), rel=1e-5)
