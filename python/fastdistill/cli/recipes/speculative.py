"""Speculative decoding (arXiv:2211.17192) as transformers runs it: what is accepted, how fast."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models import unstrided_head_inputs
from .ratio import ratio

if TYPE_CHECKING:
    from transformers import GenerationConfig, LlamaForCausalLM

DRAFTED = 4
"""Tokens that the draft proposes in a round."""


@dataclass(frozen=True)
class Speculation:
    """What came of speculative decoding."""

    accepted: tuple[int, ...]
    """Draft tokens that the teacher accepted, for each prompt."""
    rejected: tuple[int, ...]
    """Draft tokens that it rejected, one in each round that ended so; what follows one is void."""
    rounds: int
    """Rounds with all ``DRAFTED`` tokens drafted; fewer are, where a text reaches its length."""
    tokens: int
    """New tokens in all, those of the teacher itself included."""
    acceptance: float
    """The share of the draft tokens that were examined, which is all but the void ones."""
    standard_error: float
    """Of ``acceptance``."""
    tokens_per_round: float
    """Of the whole rounds: a forward pass of the teacher yields 1 to ``DRAFTED`` + 1 tokens."""
    tokens_per_second: float
    """Of wall-clock time, the prompts' own forward passes included."""


def speculate(
    teacher: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    prompts: Tensor,
    *,
    new_tokens: int,
    sample: bool,
    seed: int,
) -> Speculation:
    """Continue each of ``prompts``, int64 (prompts, length), by ``new_tokens``.

    There must be two prompts or more, and tokens enough for a round.
    The text is the teacher's own, whatever the draft: its greedy choice, or a sample at T = 1 out
    of the whole vocabulary. The models are run as they are, in their own dtypes.
    """
    if len(prompts) < 2:
        raise ValueError(f"a standard error needs two prompts or more, got {len(prompts)}")
    if new_tokens <= DRAFTED:
        raise ValueError(f"no round is whole in {new_tokens} tokens: it takes {DRAFTED + 1}")
    rounds = [_Rounds(new_tokens) for _ in prompts]
    with _plain_decoding(teacher, sample), _plain_decoding(draft, sample):
        seconds = _continue(
            teacher,
            prompts,
            new_tokens,
            seed,
            [{"assistant_model": draft, "streamer": streamer} for streamer in rounds],
        )
    accepted = tuple(own.accepted for own in rounds)
    rejected = tuple(own.rejected for own in rounds)
    acceptance, error = accepted_share(accepted, rejected)
    whole = [length for own in rounds for length in own.whole]
    tokens = len(prompts) * new_tokens
    return Speculation(
        accepted=accepted,
        rejected=rejected,
        rounds=len(whole),
        tokens=tokens,
        acceptance=acceptance,
        standard_error=error,
        tokens_per_round=sum(whole) / len(whole),
        tokens_per_second=tokens / seconds,
    )


def decode_alone(
    teacher: LlamaForCausalLM, prompts: Tensor, *, new_tokens: int, sample: bool, seed: int
) -> float:
    """Tokens per second of the teacher without a draft: what :func:`speculate` competes with."""
    with _plain_decoding(teacher, sample):
        seconds = _continue(teacher, prompts, new_tokens, seed, [{}] * len(prompts))
    return len(prompts) * new_tokens / seconds


def accepted_share(accepted: Sequence[int], rejected: Sequence[int]) -> tuple[float, float]:
    """accepted / (accepted + rejected), of the sums over prompts, and its standard error."""
    part = torch.tensor(accepted)
    return ratio(part, part + torch.tensor(rejected))


def in_dtype(model: LlamaForCausalLM, dtype: torch.dtype) -> LlamaForCausalLM:
    """A copy of ``model`` to generate with, as if its weights had been loaded in ``dtype``.

    ``model.to(dtype)`` would round the rotary frequencies as well, which belong in float32.
    """
    copied = copy.deepcopy(model).requires_grad_(False)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype)
    return copied


def _continue(
    teacher: LlamaForCausalLM,
    prompts: Tensor,
    new_tokens: int,
    seed: int,
    options: list[dict[str, Any]],
) -> float:
    """Seconds that it took to continue each prompt, with options of its own."""
    torch.manual_seed(seed)
    started = time.perf_counter()
    for prompt, own in zip(prompts[:, None], options, strict=True):
        teacher.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            **own,
        )
    return time.perf_counter() - started


class _Rounds:
    """The rounds of one text: a streamer, which is handed what each of them adds to it."""

    def __init__(self, new_tokens: int) -> None:
        self.accepted = 0
        self.rejected = 0
        self.whole: list[int] = []
        """Lengths of the rounds with all tokens drafted."""
        self._remaining = new_tokens
        self._is_prompt = True

    def put(self, ids: Tensor) -> None:
        """Take in the prompt, and then the outcome of a round, (1, accepted + 1)."""
        if self._is_prompt:
            self._is_prompt = False
            return
        # A round ends with a token of the teacher's, so only as many are drafted as fit before it.
        drafted = min(DRAFTED, self._remaining - 1)
        accepted = ids.shape[-1] - 1
        self.accepted += accepted
        self.rejected += accepted < drafted
        if drafted == DRAFTED:
            self.whole.append(accepted + 1)
        self._remaining -= accepted + 1

    def end(self) -> None:
        """Nothing is left to do."""


@contextmanager
def _plain_decoding(model: LlamaForCausalLM, sample: bool) -> Iterator[None]:
    """Let ``model`` generate by its distribution alone, for as long as it is told to.

    Without an end token every text has the same length, and no round is cut short after its draft
    was examined.
    """
    from transformers import GenerationConfig
    from transformers.utils import logging

    kept, was_training = model.generation_config, model.training
    verbosity = logging.get_verbosity()
    # In a round transformers calls the draft in a way that it warns of.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model.generation_config = _config(GenerationConfig, sample)
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with unstrided_head_inputs(model):
            yield
    finally:
        logging.set_verbosity(verbosity)
        model.generation_config = kept
        model.train(was_training)


def _config(kind: type[GenerationConfig], sample: bool) -> GenerationConfig:
    """Greedy decoding, or sampling at T = 1; with a constant number of drafted tokens."""
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    return kind(
        do_sample=sample,
        eos_token_id=None,
        num_assistant_tokens=DRAFTED,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
        **sampling,
    )
