"""Text to blocks of tokens: what is trained on, in which order, and what is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_HELD_OUT = 32
HELD_OUT_SHARE = 16
NO_LABEL = -100


@dataclass(frozen=True)
class SourceText:
    """Raw text and the name of its source, which includes a digest of the content."""

    name: str
    content: str


@dataclass(frozen=True)
class Corpus:
    """Token ids, int64: ``train`` (blocks, length) and ``held_out`` (blocks, length)."""

    train: Tensor
    held_out: Tensor

    def batch(self, seed: int, step: int, size: int) -> Tensor:
        """The ids of one step, (size, length): a function of ``seed`` and ``step`` alone.

        The blocks are visited in a new random order in each epoch.
        """
        return self.train[blocks_of_step(len(self.train), seed, step, size)]


def next_tokens(ids: Tensor) -> Tensor:
    """The token that follows each of ``ids`` (blocks, length); NO_LABEL for the last ones."""
    return pad(ids[:, 1:], (0, 1), value=NO_LABEL)


def blocks_of_step(blocks: int, seed: int, step: int, size: int) -> Tensor:
    """The numbers, below ``blocks``, of the blocks of one step, int64 (size,)."""
    positions = range(step * size, (step + 1) * size)
    orders = {
        epoch: np.random.default_rng((seed, epoch)).permutation(blocks)
        for epoch in {position // blocks for position in positions}
    }
    chosen = [int(orders[position // blocks][position % blocks]) for position in positions]
    return torch.tensor(chosen)


def read_text(files: Sequence[Path]) -> SourceText:
    """Read ``files`` as UTF-8; without any, the documentation that ships with Python."""
    if files:
        name = ", ".join(map(str, files))
        content = "\n\n".join(_read(file) for file in files)
    else:
        from pydoc_data.topics import topics

        name, content = "pydoc_data.topics", "\n\n".join(topics.values())
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return SourceText(f"{name} (sha256 {digest})", content)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--text: {file} is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise UserError(f"--text: cannot read {file}: {error.strerror}") from None


def tokenize(text: SourceText, tokenizer: PreTrainedTokenizerBase, block: int) -> Corpus:
    """Cut ``text`` into blocks of ``block`` tokens and hold an evenly spaced few of them out."""
    encoded = tokenizer(text.content, add_special_tokens=False, verbose=False)
    ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
    count = len(ids) // block
    if count < 2:
        raise UserError(
            f"--text: {text.name} has {len(ids)} tokens; training and held-out text "
            f"need a block of {block} each: give more text or a smaller --block"
        )
    blocks = ids[: count * block].view(count, block)
    held_count = min(MAX_HELD_OUT, max(1, count // HELD_OUT_SHARE))
    held = torch.zeros(count, dtype=torch.bool)
    held[(torch.arange(held_count) * count + count // 2) // held_count] = True
    return Corpus(train=blocks[~held], held_out=blocks[held])
