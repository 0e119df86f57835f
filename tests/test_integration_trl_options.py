"""TRL's trainers with the loss of this package: options, wrappers and refusals."""

import importlib
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from trl_cases import KINDS, assert_same, llama, loss_and_gradients, make_batch, make_trainer

import fastdistill as fd
from fastdistill import students
from fastdistill.integrations import trl as ours

pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="needs TRL"),
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


@pytest.mark.parametrize("kind_", KINDS)
def test_peft_student(kind_, tmp_path):
    peft = pytest.importorskip("peft")
    results = []
    for side in ("TRL", "ours"):
        torch.manual_seed(2)
        lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        trainer = make_trainer(kind_, side, tmp_path, peft_config=lora)
        results.append(loss_and_gradients(trainer, make_batch(kind_)))
    theirs, mine = results
    assert len(mine[1]) == 4  # A and B of both
    assert_same(mine, theirs)


@pytest.mark.parametrize("kind_", KINDS)
def test_gradient_checkpointing(kind_, tmp_path):
    theirs, mine = (
        loss_and_gradients(
            make_trainer(kind_, side, tmp_path, gradient_checkpointing=True), make_batch(kind_)
        )
        for side in ("TRL", "ours")
    )
    assert_same(mine, theirs)


@pytest.mark.parametrize("kind_", ["GKD", "GOLD"])
def test_mixed_precision(kind_, tmp_path, monkeypatch):
    """The GEMMs round to bfloat16 in both, not in the same places; that of the head among them."""
    results, autocast = [], []

    def loss(*args, **options):
        autocast.append(torch.is_autocast_enabled("cpu"))
        return fd.linear_distillation_loss(*args, **options)

    monkeypatch.setattr(students, "linear_distillation_loss", loss)
    for side in ("TRL", "ours"):
        trainer = make_trainer(kind_, side, tmp_path, bf16=True)
        model = trainer.accelerator.prepare_model(trainer.model)
        results.append(loss_and_gradients(trainer, make_batch(kind_), model=model))
    theirs, mine = results
    assert_same(mine, theirs, 3e-2)
    assert autocast == [True]


@pytest.fixture
def process_group(tmp_path):
    """Outlives what a test wraps: freed after its group, a wrapper may wait for it for ever."""
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind_", KINDS)
@pytest.mark.parametrize("find_unused", [False, True])
def test_distributed_data_parallel(process_group, kind_, find_unused, tmp_path):
    trainer = make_trainer(kind_, "ours", tmp_path)
    alone = loss_and_gradients(trainer, make_batch(kind_))
    wrapped = torch.nn.parallel.DistributedDataParallel(
        trainer.model, find_unused_parameters=find_unused
    )
    assert_same(loss_and_gradients(trainer, make_batch(kind_), model=wrapped), alone)


@pytest.mark.parametrize(("hidden_dtype", "weight_dtype"), [
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32),
])  # fmt: skip
@pytest.mark.parametrize("num_items", [None, 9])
def test_the_function_that_is_replaced(hidden_dtype, weight_dtype, num_items, tmp_path):
    """Biases, scales, softcaps, widths and dtypes that no tiny Llama has."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    trainer = make_trainer("Distillation", "ours", tmp_path)
    generator = torch.Generator().manual_seed(3)

    def random(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    student = random(2, 5, 8, dtype=hidden_dtype), random(40, 8, dtype=weight_dtype), random(40)
    teacher = random(2, 5, 6, dtype=hidden_dtype), random(40, 6, dtype=weight_dtype), random(40)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
    results = []
    for loss in (_chunked_divergence_loss, trainer._divergence_loss):
        value, entropy, tokens = loss(
            student[0], teacher[0], student[1], teacher[1], mask, 0.2,
            num_items_in_batch=num_items, student_lm_head_bias=student[2].to(hidden_dtype),
            teacher_lm_head_bias=teacher[2].to(hidden_dtype), student_logit_scale=0.7,
            teacher_logit_scale=1.3, student_final_logit_softcapping=4.0,
            teacher_final_logit_softcapping=6.0, temperature=1.5,
        )  # fmt: skip
        gradients = torch.autograd.grad(value, student)
        results.append((value, entropy, tokens, gradients))
    theirs, mine = results
    assert mine[2] == theirs[2] == 7
    for i in (0, 1):  # logits are float32 whatever the dtype
        torch.testing.assert_close(mine[i], theirs[i], rtol=1e-5, atol=0, check_dtype=False)
    rounding = 1e-5 if hidden_dtype == torch.float32 else 1e-2
    for my, his in zip(mine[3], theirs[3], strict=True):
        assert my.dtype == his.dtype
        assert (my - his).abs().max() <= rounding * his.abs().max()


@pytest.mark.parametrize("kind_", ["GKD", "GOLD"])
def test_softcap_of_the_model(kind_, tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    results = []
    for side in ("TRL", "ours"):
        torch.manual_seed(4)
        config = Gemma2Config(
            **llama(16, seed=0).config.to_dict() | {"head_dim": 8, "hidden_activation": "gelu"},
            final_logit_softcapping=1.5,
        )
        trainer = make_trainer(kind_, side, tmp_path, student=Gemma2ForCausalLM(config))
        results.append(loss_and_gradients(trainer, make_batch(kind_)))
    theirs, mine = results
    assert_same(mine, theirs)


def test_inputs_that_only_the_models_know(tmp_path):
    """GOLD hands every other tensor of the batch to both models."""
    batch = make_batch("GOLD")
    theirs, mine = (make_trainer("GOLD", side, tmp_path) for side in ("TRL", "ours"))
    without, _ = loss_and_gradients(mine, batch)
    batch["position_ids"] = torch.arange(10).flip(0).expand(2, -1)
    assert_same(loss_and_gradients(mine, batch), loss_and_gradients(theirs, batch))
    assert mine.compute_loss(mine.model, batch) != without


@pytest.mark.parametrize("kind_", KINDS)
def test_teacher_is_evaluated(kind_, tmp_path):
    trainer = make_trainer(kind_, "ours", tmp_path)
    trainer.teacher_model.train()
    loss_and_gradients(trainer, make_batch(kind_))
    assert not trainer.teacher_model.training
    assert all(p.grad is None for p in trainer.teacher_model.parameters())


@pytest.mark.parametrize("kind_", ["GKD", "GOLD"])
def test_outputs_that_are_asked_for_have_logits(kind_, tmp_path):
    trainer = make_trainer(kind_, "ours", tmp_path)
    batch = make_batch(kind_)
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert outputs.logits.shape[:-1] == batch["input_ids"].shape
    torch.testing.assert_close(loss, trainer.compute_loss(trainer.model, batch))


def test_loss_across_tokenizers_is_trls(tmp_path, monkeypatch):
    trainer = make_trainer("GOLD", "ours", tmp_path)
    trls = sys.modules["trl.experimental.gold"].GOLDTrainer
    monkeypatch.setattr(trls, "compute_loss", lambda *args: "TRL's")
    assert trainer.compute_loss(trainer.model, make_batch("GOLD")) != "TRL's"
    trainer.use_uld_loss, trainer.teacher_tokenizer = True, trainer.processing_class
    assert trainer.compute_loss(trainer.model, make_batch("GOLD")) == "TRL's"


def test_beta_out_of_range(tmp_path):
    trainer = make_trainer("GKD", "ours", tmp_path)
    trainer.beta = 1.5
    with pytest.raises(ValueError, match=r"beta.*1\.5"):
        trainer.compute_loss(trainer.model, make_batch("GKD"))


@pytest.mark.parametrize("kind_", KINDS)
@pytest.mark.parametrize(("fsdp", "zero_stage", "refused"), [
    (False, 2, False), (False, 3, True), (True, None, True),
])  # fmt: skip
def test_sharded_heads_are_refused(kind_, fsdp, zero_stage, refused):
    """A class with the attributes of a trainer stands for one, as a launcher would make it."""
    plugin = None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage)
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))

    class Trls:
        def __init__(self):
            self.accelerator, self.is_fsdp_enabled = accelerator, fsdp

    (mixin,) = (c for c in getattr(ours, f"{kind_}Trainer").__mro__ if c.__name__ == "LossMetrics")
    expected = pytest.raises(ValueError, match="no FSDP, no DeepSpeed ZeRO-3")
    with expected if refused else nullcontext():
        type("Trainer", (mixin, Trls), {})()


def test_trl_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match="GKDTrainer needs TRL: pip install trl"):
        _ = ours.GKDTrainer
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        _ = ours.Trainer


def test_a_trl_that_computes_its_loss_another_way_is_refused(monkeypatch):
    from trl.trainer import distillation_trainer

    name = "fastdistill.integrations.trl.distillation"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(
        distillation_trainer.DistillationTrainer, "_compute_loss", lambda self: None
    )
    with pytest.raises(ImportError, match="does not call _chunked_divergence_loss"):
        importlib.import_module(name)


def test_nothing_of_trl_is_imported_before_a_trainer_is():
    code = (
        "import sys, fastdistill.integrations.trl as t; assert 'GKDTrainer' in t.__all__;"
        "assert not {'trl', 'transformers', 'accelerate'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
