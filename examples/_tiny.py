"""What the examples share: CPython's documentation as text, and two tiny random models.

The models are random so that nothing has to be downloaded. What the student learns is what the
teacher says about that text, whatever it is.
"""

import pydoc_data.topics

import torch
from torch import Tensor
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)  # in models of this size threads would only wait for each other


def documentation() -> str:
    """The text that ``help("topics")`` shows, about half a million characters."""
    return "\n".join(pydoc_data.topics.topics.values())


def tokenizer() -> ByT5Tokenizer:
    """A token for each byte, and three special ones."""
    return ByT5Tokenizer(extra_ids=0)


def blocks(length: int = 64) -> list[dict[str, Tensor]]:
    """The documentation as examples of ``length`` tokens; the labels are the tokens themselves."""
    ids = torch.tensor(tokenizer()(documentation(), add_special_tokens=False).input_ids)
    whole = ids[: len(ids) // length * length].view(-1, length)
    return [{"input_ids": block, "labels": block} for block in whole]


def models() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A random teacher of four layers, and as its student a copy of the first two."""
    torch.manual_seed(0)
    teacher, student = llama(layers=4), llama(layers=2)
    student.load_state_dict(teacher.state_dict(), strict=False)
    return teacher, student


def llama(layers: int) -> LlamaForCausalLM:
    """A random Llama; its initial weights are wide enough for it to prefer some tokens."""
    config = LlamaConfig(
        vocab_size=len(tokenizer()), hidden_size=64, intermediate_size=128,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)
