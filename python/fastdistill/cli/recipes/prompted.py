"""Texts that continue the same prompts: as the corpus does, as the teacher, or as a student."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..corpus import blocks_of_step, read_text, tokenize
from .study import Study
from .text import BLOCKS_PER_SAMPLING, ScoredText, Text, sample, score

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from .on_policy import Settings

OTHERS = ("corpus", "teacher")
"""Who writes text besides the student."""


@dataclass(frozen=True)
class Written:
    """Text that is written before a student is trained on it."""

    scored: ScoredText
    sampling_seconds: float
    scoring_seconds: float


class Prompted:
    """The blocks of the corpus, and what is written after their beginnings."""

    def __init__(
        self,
        study: Study,
        settings: Settings,
        teacher: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._study = study
        self._settings = settings
        self._teacher = teacher
        source = read_text([])
        self.source = source.name
        # Held out in pairs, so that there are twice as many.
        corpus = tokenize(source, tokenizer, 2 * settings.block)
        self._train = corpus.train.view(-1, settings.block)
        self._held_out = corpus.held_out.view(-1, settings.block)[: settings.held_out]
        self._written: dict[str, Written] = {}

    def blocks(self, step: int) -> Tensor:
        """Those of a step, int64 (batch, block), counted from the first step of the warm-up."""
        chosen = self._settings
        return self._train[blocks_of_step(len(self._train), chosen.seed, step, chosen.batch)]

    def training(self, writer: str) -> Written:
        """What one of OTHERS wrote for all steps after the warm-up, one step after the other."""
        if writer not in self._written:
            first, steps = self._settings.warmup_steps, self._settings.steps
            blocks = torch.cat([self.blocks(first + step) for step in range(steps)])
            text, sampling = self._by(writer, "training", blocks)
            started = time.perf_counter()
            scored = score(self._teacher, text)
            self._written[writer] = Written(scored, sampling, time.perf_counter() - started)
        return self._written[writer]

    @cached_property
    def held_out(self) -> dict[str, ScoredText]:
        """What each of OTHERS wrote for students to be judged on."""
        texts = {writer: self._by(writer, "held-out", self._held_out)[0] for writer in OTHERS}
        return {writer: score(self._teacher, text) for writer, text in texts.items()}

    def by_student(self, student: LlamaForCausalLM, step: int) -> Text:
        """What ``student``, as it is now, writes at a step after the warm-up."""
        blocks = self.blocks(self._settings.warmup_steps + step)
        return self._by_student(student, blocks, self._settings.seed + step)

    def held_out_by_student(self, student: LlamaForCausalLM) -> ScoredText:
        """What ``student`` writes to be judged on."""
        return score(self._teacher, self._by_student(student, self._held_out, self._settings.seed))

    def _by(self, writer: str, use: str, blocks: Tensor) -> tuple[Text, float]:
        """How one of OTHERS continues the prompts of ``blocks``, and seconds of sampling."""
        if writer == "corpus":
            counted = torch.zeros_like(blocks, dtype=torch.bool)
            counted[:, self._settings.prompt - 1 : -1] = True  # as in sampled text
            return Text(blocks, counted), 0.0
        parts = blocks.split(BLOCKS_PER_SAMPLING)
        found = []
        for i, part in enumerate(parts):
            with self._study.console.status(f"the teacher's {use} text, {i + 1} of {len(parts)}"):
                find = partial(self._by_teacher, part, self._settings.seed + i)
                found.append(self._study.once(f"{use} text {i}", find))
        ids, counted = (torch.cat([part[key] for part in found]) for key in ("ids", "counted"))
        return Text(ids, counted), sum(part["seconds"] for part in found)

    def _by_teacher(self, blocks: Tensor, seed: int) -> dict[str, Any]:
        started = time.perf_counter()
        text = self._sampled(self._teacher, blocks, seed)
        return {**vars(text), "seconds": time.perf_counter() - started}

    def _by_student(self, student: LlamaForCausalLM, blocks: Tensor, seed: int) -> Text:
        # The weights are rounded once, not for each token.
        rounded = copy.deepcopy(student).to(self._settings.torch_dtype)  # type: ignore[arg-type]
        return self._sampled(rounded, blocks, seed)

    def _sampled(self, model: LlamaForCausalLM, blocks: Tensor, seed: int) -> Text:
        """How ``model`` continues the prompts of ``blocks``, to their length."""
        prompts, length = blocks[:, : self._settings.prompt], self._settings.block
        return sample(model, prompts, length, seed, ends=False)
