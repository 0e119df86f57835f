"""Trainers of TRL and ours, with equal models and data, and what is compared of them."""

import importlib

import torch

from fastdistill.integrations import trl as ours

MODULES = {
    "Distillation": "trl.trainer",
    "GKD": "trl.experimental.gkd",
    "GOLD": "trl.experimental.gold",
}
KINDS = list(MODULES)
BYTES, PAD, EOS = 256, 0, 1
VOCAB = BYTES + 3  # of ByT5's tokenizer: a token for each byte, and three special ones
PROMPT = 4


def llama(width, seed, **config):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=width, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
            initializer_range=0.3, pad_token_id=PAD, eos_token_id=EOS, **config,
        )
    )  # fmt: skip


def data():
    """Eight rows: a prompt, which DistillationTrainer completes, and a completion of its own."""
    from datasets import Dataset

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, VOCAB, (8, 10), generator=generator).tolist()
    mask = [0] * PROMPT + [1] * (10 - PROMPT)
    return Dataset.from_list(
        [{"prompt": "four", "input_ids": row, "completion_mask": mask} for row in rows]
    )


def make_trainer(kind, side, directory, student=None, peft_config=None, **config):
    """``side`` is "TRL" or "ours"; models and data are the same for both."""
    from transformers import ByT5Tokenizer

    trls = importlib.import_module(MODULES[kind])
    cls = getattr(trls if side == "TRL" else ours, f"{kind}Trainer")
    length = "max_new_tokens" if kind == "GKD" else "max_completion_length"
    options = {
        "output_dir": str(directory), "report_to": [], "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "disable_tqdm": True, "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4, "optim": "sgd", "learning_rate": 1.0, "logging_steps": 1,
        "save_strategy": "no", length: 5,
    }  # fmt: skip
    rows = data()
    return cls(
        model=llama(16, seed=0) if student is None else student,
        teacher_model=llama(24, seed=1),
        args=getattr(trls, f"{kind}Config")(**options | config),
        train_dataset=rows, eval_dataset=rows.select(range(4)),
        processing_class=ByT5Tokenizer(extra_ids=0), peft_config=peft_config,
    )  # fmt: skip


def make_batch(kind, length=10):
    """Two rows, the first with a padded prompt, the second with a shorter completion."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (2, length), generator=generator)
    attended = torch.ones_like(ids)
    attended[0, :2] = attended[1, -3:] = 0
    prompt, completion = slice(0, PROMPT), slice(PROMPT, None)
    if kind == "Distillation":
        return {
            "prompt_ids": ids[:, prompt], "prompt_mask": attended[:, prompt],
            "completion_ids": ids[:, completion], "completion_mask": attended[:, completion],
        }  # fmt: skip
    labels = ids.masked_fill(attended == 0, -100)
    labels[:, prompt] = -100
    return {"input_ids": ids, "attention_mask": attended, "labels": labels}


def loss_and_gradients(trainer, batch, num_items=None, model=None):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(model or trainer.model, batch, num_items_in_batch=num_items)
    loss.backward()
    named = trainer.model.named_parameters()
    return loss.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_same(mine, theirs, tolerance=3e-5):
    """Losses, relative; gradients, relative to the largest element of each."""
    torch.testing.assert_close(mine[0], theirs[0], rtol=tolerance, atol=0, check_dtype=False)
    assert mine[1].keys() == theirs[1].keys()
    for name, expected in theirs[1].items():
        assert (mine[1][name] - expected).abs().max() <= tolerance * expected.abs().max(), name
