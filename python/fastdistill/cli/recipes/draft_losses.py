"""The losses that draft models are trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

import fastdistill as fd

from .text import ScoredText

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Loss = Callable[["LlamaForCausalLM", ScoredText, torch.dtype], Tensor]
"""Of a draft, of text that its teacher scored, with the GEMMs in a dtype: nats per token."""

MIXTURE_RATE = 3.0
"""How fast forward KL gives way to total variation as drafts are accepted."""


def _divergence(divergence: fd.Divergence) -> Loss:
    def loss(draft: LlamaForCausalLM, scored: ScoredText, dtype: torch.dtype) -> Tensor:
        return cast(Tensor, scored.loss(draft, dtype, divergence=divergence))

    return loss


def mixture(draft: LlamaForCausalLM, scored: ScoredText, dtype: torch.dtype) -> Tensor:
    """w ForwardKL + (1 - w) TotalVariation, w = exp(-3 acceptance) of each token, a constant.

    A token whose drafts are hardly accepted yet has a forward KL, whose gradient does not vanish;
    one whose drafts are, has the rejection rate itself. LK losses, arXiv:2602.23881.
    """
    hidden = scored.student_hidden(draft, dtype)
    head = draft.lm_head.weight
    with torch.no_grad():
        rejection = scored.loss_of_hidden(
            hidden, head, dtype, divergence=fd.TotalVariation(), reduction="none"
        )
    weight = torch.exp(-MIXTURE_RATE * (1 - rejection))
    count = scored.text.counted.sum()
    parts = ((fd.ForwardKL(), weight), (fd.TotalVariation(), 1 - weight))
    losses = [
        scored.loss_of_hidden(
            hidden, head, dtype, divergence=divergence, weights=weights, num_items=count
        )
        for divergence, weights in parts
    ]
    return cast(Tensor, sum(losses))


LOSSES: dict[str, Loss] = {
    "ForwardKL": _divergence(fd.ForwardKL()),
    "ReverseKL": _divergence(fd.ReverseKL()),
    "JensenShannon": _divergence(fd.JensenShannon(beta=0.5)),
    "SkewForwardKL": _divergence(fd.SkewForwardKL(alpha=0.1)),
    "TotalVariation": _divergence(fd.TotalVariation()),
    "NegativeLogAcceptance": _divergence(fd.NegativeLogAcceptance()),
    "mixture": mixture,
}
