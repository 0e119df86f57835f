"""DistillationTrainer takes the steps of a Trainer that computes the loss from logits, in torch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

pytest.importorskip("transformers", reason="needs fastdistill[distill]")
pytest.importorskip("accelerate", reason="needs fastdistill[distill]")

from processes import leave
from safetensors.torch import load_file
from trainer_cases import (
    AVERAGED,
    EXAMPLES,
    LogitsTrainer,
    V,
    llama,
    logits_loss,
    losses,
    make,
    trained,
    weights,
)
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),  # by peft
]


# ---- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
def test_steps_are_those_of_the_logits(tmp_path, bf16):
    ours, our_weights, _ = trained(tmp_path, bf16=bf16)
    theirs, their_weights, _ = trained(tmp_path, LogitsTrainer, bf16=bf16)
    assert len(ours) == 3
    assert ours == pytest.approx(theirs, abs=1e-2 if bf16 else 1e-5)
    tolerance = {"rtol": 0, "atol": 2e-3} if bf16 else {"rtol": 1e-5, "atol": 1e-6}
    for name, weight in their_weights.items():
        torch.testing.assert_close(our_weights[name], weight, msg=name, **tolerance)


def test_the_first_label_of_a_row_is_nobodys_target(tmp_path):
    """Also where the student's class has no loss of which the Trainer knows that it shifts labels."""
    torch.manual_seed(0)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    student = GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=32, **dropout)
    )
    examples = [
        {**e, "labels": e["input_ids"].where(e["attention_mask"] > 0, -100)} for e in EXAMPLES
    ]
    trainer = make(tmp_path, student=student, batch=len(examples), max_steps=1)
    trainer.train_dataset = examples
    batch = {name: torch.stack([e[name] for e in examples]) for name in examples[0]}
    expected, counted = logits_loss(student, trainer.teacher, batch)
    trainer.train()
    assert losses(trainer) == pytest.approx([expected[counted].mean().item()], rel=1e-4)


def test_mixed_precision_reaches_the_head(tmp_path, monkeypatch):
    trainer, modes = make(tmp_path, bf16=True), []
    loss = trainer._loss

    def spy(*arguments):
        modes.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return loss(*arguments)

    monkeypatch.setattr(trainer, "_loss", spy)
    trainer.train()
    assert modes == [(True, torch.bfloat16)] * 3


def test_a_batch_is_its_uneven_micro_batches(tmp_path):
    whole, at_once, _ = trained(tmp_path, batch=4, max_steps=2)
    parts, by_parts, _ = trained(tmp_path, batch=1, gradient_accumulation_steps=4, max_steps=2)
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, weight in at_once.items():
        torch.testing.assert_close(by_parts[name], weight, rtol=1e-5, atol=1e-6)


@pytest.fixture
def unused_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def train_in_process(rank, directory, port, results):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    found = trained(directory, batch=2, max_steps=2, ddp_timeout=60)
    metrics = found[2].evaluate()
    if rank == 0:
        torch.save([*found[:2], found[2].state.log_history, metrics], results)
    leave()


def test_a_batch_is_the_share_of_each_process(tmp_path, unused_port):
    results = tmp_path / "results.pt"
    mp.spawn(train_in_process, (str(tmp_path), unused_port, str(results)), nprocs=2)
    shared, shared_weights, log, evaluated = torch.load(results)
    whole, alone, trainer = trained(tmp_path, batch=4, max_steps=2)
    assert shared == pytest.approx(whole, rel=1e-5)
    for name, weight in alone.items():
        torch.testing.assert_close(shared_weights[name], weight, rtol=1e-5, atol=1e-6)
    for name in (*AVERAGED, "counted"):
        assert log[0][name] == pytest.approx(trainer.state.log_history[0][name], rel=1e-5)
        metric = trainer.evaluate()[f"eval_{name}"]
        assert evaluated[f"eval_{name}"] == pytest.approx(metric, rel=1e-5)


def test_lora_trains_and_saves_the_adapter_alone(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    student = peft.get_peft_model(llama(0), peft.LoraConfig(target_modules=["q_proj", "up_proj"]))
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    _, after, trainer = trained(tmp_path, student=student)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    trainer.save_model(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved)


# ---- checkpoints ----------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    expected, final, _ = trained(tmp_path / "a", **settings)
    resumed = make(tmp_path / "b", student=llama(5), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert losses(resumed) == pytest.approx(expected, rel=1e-6)
    for name, weight in weights(resumed).items():
        torch.testing.assert_close(weight, final[name], rtol=1e-6, atol=1e-7)


def test_a_checkpoint_holds_the_student_alone(tmp_path):
    _, final, trainer = trained(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    student = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert {n: p.tolist() for n, p in student.named_parameters()} == {
        n: p.tolist() for n, p in final.items()
    }
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in student.parameters())
    assert not any(p.grad is not None for p in trainer.teacher.parameters())
    assert not trainer.teacher.training


# ---- memory ---------------------------------------------------------------------------------------

MEASURE = """
import json, re, sys, warnings
import torch
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import trainer_cases as t

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024

def step(trainer, vocab, length):
    ids = torch.arange(length)[None] % vocab
    batch = {"input_ids": ids, "labels": ids}
    made = t.make(sys.argv[2], trainer)
    made.teacher, student = t.llama(1, vocab), t.llama(0, vocab)
    start = peak()
    made.compute_loss(student, batch, num_items_in_batch=length - 1).backward()
    return peak() - start

torch.set_num_threads(1)
t.OPTIONS = {**t.OPTIONS, "chunk_size": 64}
trainers = (t.DistillationTrainer, t.LogitsTrainer)
for trainer in trainers:
    step(trainer, 97, 8)
print(json.dumps([step(trainer, 32768, 1024) for trainer in trainers]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_step_holds_no_logits(tmp_path):
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    ours, logits = json.loads(run.stdout.splitlines()[-1])
    one_side = 1024 * 32768 * 4 / 2**20
    assert ours < one_side / 2
    assert logits > 3 * one_side  # what is measured can be seen
