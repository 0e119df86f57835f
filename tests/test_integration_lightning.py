"""DistillationModule takes the steps of a module that computes the loss from logits, in torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("transformers", reason="needs fastdistill[distill]")
pytest.importorskip("lightning", reason="needs lightning")

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from trainer_cases import AVERAGED, EXAMPLES, OPTIONS, expected_metrics, llama, logits_loss

from fastdistill.integrations.lightning import DistillationModule, check_strategy

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),  # by peft
]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


class LogitsModule(LightningModule):
    """The same loss from logits, as one writes it by hand."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student.train(), teacher.eval()

    def configure_optimizers(self):
        return sgd(self.student.parameters())

    def training_step(self, batch, batch_idx):
        rows, counted = logits_loss(self.student, self.teacher, batch)
        loss = rows[counted].mean()
        self.log("train_loss", loss)
        return loss


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(trainer.callback_metrics["train_loss"].item())


def ours(student=None):
    return DistillationModule(student or llama(0), llama(1), OPTIONS, sgd)


def fit(module, *, batch=2, callbacks=(), resume=None, **settings):
    """Train on the examples in order; returns the losses of the batches."""
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[losses, *callbacks],
        **{"max_steps": 3, "enable_checkpointing": False, **settings},
    )  # fmt: skip
    trainer.fit(module, DataLoader(EXAMPLES, batch_size=batch), ckpt_path=resume)
    return losses.seen, trainer


def assert_same_weights(module, expected, **tolerance):
    for (name, weight), other in zip(
        module.student.named_parameters(), expected.student.parameters(), strict=True
    ):
        torch.testing.assert_close(weight, other, msg=name, **tolerance)


# ---- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steps_are_those_of_the_logits(precision):
    module, reference = ours(), LogitsModule(llama(0), llama(1))
    settings = {"precision": precision, "gradient_clip_val": 0.1}
    found, _ = fit(module, **settings)
    expected, _ = fit(reference, **settings)
    exact = precision == "32-true"
    assert found == pytest.approx(expected, abs=1e-5 if exact else 1e-2)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if exact else {"rtol": 0, "atol": 2e-3}
    assert_same_weights(module, reference, **tolerance)


def test_mixed_precision_reaches_the_head(monkeypatch):
    module, modes = ours(), []
    loss = module._loss

    def spy(*arguments):
        modes.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return loss(*arguments)

    monkeypatch.setattr(module, "_loss", spy)
    fit(module, precision="bf16-mixed")
    assert modes == [(True, torch.bfloat16)] * 3


def test_a_batch_is_its_uneven_micro_batches():
    whole, parts = ours(), ours()
    fit(whole, batch=4, max_steps=2)
    fit(parts, batch=1, accumulate_grad_batches=4, max_steps=2)
    assert_same_weights(parts, whole, rtol=1e-5, atol=1e-6)


def test_a_rest_of_micro_batches_is_a_step_of_its_own():
    whole, parts = ours(), ours()
    fit(whole, batch=8, max_steps=1)
    fit(parts, batch=1, accumulate_grad_batches=16, max_steps=-1, max_epochs=1)
    assert_same_weights(parts, whole, rtol=1e-5, atol=1e-6)


def test_lora_trains_the_adapter_alone():
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    module = ours(peft.get_peft_model(llama(0), peft.LoraConfig(target_modules=["q_proj"])))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit(module)
    after = dict(module.named_parameters())
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed
    assert all("lora_" in name for name in changed)


class Interrupts(Callback):
    """At the second batch of an epoch, of training or of validation."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 1:
            raise InterruptedError

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.on_train_batch_end(trainer, module, outputs, batch, batch_idx)


def test_nothing_of_an_interrupted_run_is_left():
    whole, again = ours(), ours()
    settings = {"batch": 1, "accumulate_grad_batches": 4, "max_steps": 2}
    with pytest.raises(InterruptedError):
        fit(again, callbacks=[Interrupts()], **settings)
    for module in (whole, again):
        fit(module, **settings)
    assert_same_weights(again, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy])
def test_strategies_that_scatter_gradients_or_heads_are_refused(strategy):
    with pytest.raises(ValueError, match=f"such as ddp, got {strategy.__name__}"):
        check_strategy(strategy.__new__(strategy))


# ---- logs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupted", [False, True])
def test_validation_reports_averages_over_all_tokens(interrupted):
    module = ours()
    if interrupted:
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[Interrupts()]
        )
        with pytest.raises(InterruptedError):
            trainer.validate(module, DataLoader(EXAMPLES, batch_size=3), verbose=False)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    for _ in range(2):  # the second begins again
        (found,) = trainer.validate(module, DataLoader(EXAMPLES, batch_size=3), verbose=False)
        loss, expected = expected_metrics(module.student, module.teacher)
        assert found["val_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert found["val_counted"] == expected.counted
        for name in AVERAGED:
            assert found[f"val_{name}"] == pytest.approx(getattr(expected, name).item(), rel=1e-5)


def test_training_logs_the_metrics_of_a_batch():
    module = DistillationModule(llama(0), llama(1), OPTIONS, lambda p: torch.optim.SGD(p, lr=0.0))
    _, trainer = fit(module, batch=8, max_steps=1)
    loss, expected = expected_metrics(module.student, module.teacher)
    found = trainer.callback_metrics
    assert found["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["train_counted"] == expected.counted
    for name in AVERAGED:
        assert found[f"train_{name}"] == pytest.approx(getattr(expected, name).item(), rel=1e-5)


# ---- checkpoints ----------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    def adam(seed):
        return DistillationModule(llama(seed), llama(1), OPTIONS)

    whole, half, resumed = adam(0), adam(0), adam(5)
    fit(whole, max_steps=-1, max_epochs=2)
    _, trainer = fit(half, max_steps=-1, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, max_steps=-1, max_epochs=2, resume=tmp_path / "half.ckpt")
    assert_same_weights(resumed, whole, rtol=1e-6, atol=1e-7)


def test_the_teacher_is_neither_saved_nor_trained():
    module = ours()
    before = {name: weight.clone() for name, weight in module.teacher.state_dict().items()}
    fit(module)
    assert all(name.startswith("student.") for name in module.state_dict())
    assert not module.teacher.training
    assert module.student.training
    for name, weight in module.teacher.state_dict().items():
        assert torch.equal(weight, before[name])
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


def test_wrong_options_are_refused_at_construction():
    with pytest.raises(TypeError, match="divergance"):
        DistillationModule(llama(0), llama(1), {"divergance": "forward_kl"})


# ---- memory ---------------------------------------------------------------------------------------

MEASURE = """
import json, re, sys, warnings
import torch
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import test_integration_lightning as t

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024

def step(make, vocab, length):
    ids = torch.arange(length) % vocab
    t.EXAMPLES[:] = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]
    module = make(t.llama(0, vocab), t.llama(1, vocab))
    start = peak()
    t.fit(module, batch=1, max_steps=1)
    return peak() - start

def ours(student, teacher):
    return t.DistillationModule(student, teacher, {**t.OPTIONS, "chunk_size": 64}, t.sgd)

torch.set_num_threads(1)
modules = (ours, t.LogitsModule)
for make in modules:
    step(make, 97, 8)
print(json.dumps([step(make, 32768, 1024) for make in modules]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_step_holds_no_logits():
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found, logits = json.loads(run.stdout.splitlines()[-1])
    one_side = 1024 * 32768 * 4 / 2**20
    assert found < one_side / 2
    assert logits > 3 * one_side  # what is measured can be seen
