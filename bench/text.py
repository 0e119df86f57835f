"""Real inputs: a teacher and the student that is cut out of it, on real text."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

VOCAB, WIDTH = 49152, 576
"""Of SmolLM2-135M, which is the teacher; its student has the same."""

BLOCK = 64
"""Tokens of a piece of text that the models read at once."""

_KEPT_LAYERS = (*range(10), *range(20, 30))


class ModelHead(NamedTuple):
    """What a model is, to a linear loss."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)


def missing() -> str | None:
    """Why the models cannot be had here, or None."""
    try:
        from fastdistill.cli import models

        models.check_packages(None)
    except Exception as error:  # a broken package is as good as none
        return str(error)
    return None


@functools.cache
def heads(tokens: int) -> tuple[ModelHead, ModelHead]:
    """(student, teacher) in float32, of the first tokens of text that nobody trains on."""
    from fastdistill.cli import corpus, models

    teacher, tokenizer = models.load_teacher(None, torch.float32)
    student = models.prune_depth(teacher, _KEPT_LAYERS)
    blocks = corpus.tokenize(corpus.read_text(()), tokenizer, BLOCK).held_out
    ids = blocks[: -(-tokens // BLOCK)]
    if ids.numel() < tokens:
        raise ValueError(f"tokens must be at most {ids.numel()}, those of the text, got {tokens}")
    with torch.no_grad():
        states = [models.hidden_states(model, ids) for model in (student, teacher)]
    both = zip(states, (student, teacher), strict=True)
    first, second = (
        ModelHead(hidden.reshape(-1, WIDTH)[:tokens], model.lm_head.weight.detach())
        for hidden, model in both
    )
    return first, second
