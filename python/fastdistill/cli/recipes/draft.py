"""Draft models for speculative decoding, and which loss gets their tokens accepted.

The drafts are some of the teacher's layers between its own embeddings and its own head. They differ
in depth, in the loss, and in the text: that of a corpus, or what the teacher wrote itself. All see
as many tokens. How close they come is measured on other text that the teacher wrote, and what that
is worth, by speculative decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from ..corpus import blocks_of_step, read_text, tokenize
from ..errors import UserError
from ..models import prune_depth
from ..training import Training
from . import settings
from .draft_losses import LOSSES
from .speculative import decode_alone, in_dtype, speculate
from .study import Study
from .text import ScoredText, Text, closeness, sample, score

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Settings(settings.Settings):
    """Of the full study."""

    name: ClassVar[str] = "draft"

    depths: tuple[int, ...] = (4, 8, 12)
    """Layers of the drafts: half are the teacher's first, half its last."""
    losses: tuple[str, ...] = tuple(LOSSES)
    texts: tuple[str, ...] = ("teacher", "corpus")
    """Who wrote the text that is trained on."""
    measured_at: tuple[int, ...] = (5, 10, 20)
    """Steps after which a draft is measured; the last are all."""
    batch: int = 2
    """Blocks of text per step."""
    block: int = 128
    """Tokens per block."""
    prompt: int = 16
    """Tokens at the beginning of a block that are the corpus's in any case, and do not count."""
    lr: float = 5e-4
    """Of 2.5e-4, 5e-4 and 1e-3 the best for the acceptance rate, or as good, with every loss."""
    held_out: int = 4
    """Blocks of the teacher's text that drafts are measured on."""
    prompts: int = 4
    """Of speculative decoding; each is the beginning of another held-out block."""
    new_tokens: int = 8
    """Per prompt."""


def quick(teacher: str, dtype: str) -> Settings:
    """The settings of ``--quick``."""
    return Settings(
        teacher,
        dtype,
        depths=(4,),
        losses=("ForwardKL", "JensenShannon"),
        texts=("teacher",),
        measured_at=(8, 16),
        block=64,
        held_out=8,
        prompts=2,
    )


def run(study: Study) -> dict[str, Any]:
    """Train all drafts, and measure them and those that were not trained."""
    setup = _Setup(study)
    return {
        "text": setup.source.name,
        "layers": {str(depth): setup.layers(depth) for depth in setup.settings.depths},
        "drafts": [study.once(arm.title, partial(setup.find, arm)) for arm in setup.arms()],
    }


@dataclass(frozen=True)
class _Arm:
    """A draft: its depth, and how it is trained, if at all."""

    depth: int
    text: str | None = None
    loss: str | None = None

    @property
    def title(self) -> str:
        how = f"{self.loss} on text of the {self.text}" if self.loss else "not trained"
        return f"{self.depth} layers, {how}"


class _Setup:
    """What the drafts have in common."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.settings = cast(Settings, study.settings)
        self.source = read_text([])
        self.teacher, tokenizer = study.load_teacher()
        self.corpus = tokenize(self.source, tokenizer, self.settings.block)
        for depth in self.settings.depths:
            self.layers(depth)

    def layers(self, depth: int) -> list[int]:
        """The layers of the teacher that a draft of ``depth`` layers keeps."""
        whole = self.teacher.config.num_hidden_layers
        if depth >= whole:
            raise UserError(
                f"--teacher: a draft of {depth} layers needs a teacher of more, got {whole}"
            )
        first = (depth + 1) // 2
        return [*range(first), *range(whole - depth + first, whole)]

    def arms(self) -> Iterator[_Arm]:
        """All drafts; for each depth, the one that is not trained comes first."""
        for depth in self.settings.depths:
            yield _Arm(depth)
            for text in self.settings.texts:
                for loss in self.settings.losses:
                    yield _Arm(depth, text, loss)

    # ---- text --------------------------------------------------------------------------------

    @cached_property
    def train_ids(self) -> Tensor:
        """The blocks of the corpus that all steps take, one step after the other."""
        count, chosen = len(self.corpus.train), self.settings
        order = [
            blocks_of_step(count, chosen.seed, step, chosen.batch)
            for step in range(chosen.measured_at[-1])
        ]
        return self.corpus.train[torch.cat(order)]

    @cached_property
    def sampled(self) -> Text:
        """What the teacher makes of the beginnings of the training blocks and the held-out ones."""
        chosen = self.settings

        def find() -> dict[str, Tensor]:
            held_out = self.corpus.held_out[: chosen.held_out]
            prompts = torch.cat([self.train_ids, held_out])[:, : chosen.prompt]
            with self.study.console.status("the teacher writes"):
                text = sample(self.teacher, prompts, chosen.block, chosen.seed)
            return {"ids": text.ids, "counted": text.counted}

        return Text(**self.study.once("text of the teacher", find))

    @cached_property
    def scored(self) -> dict[str, ScoredText]:
        """The training text by its writer, the same positions counted in both, and held-out."""
        blocks = len(self.train_ids)
        counted = torch.zeros_like(self.train_ids, dtype=torch.bool)
        counted[:, self.settings.prompt - 1 : -1] = True
        texts = {
            "teacher": self.sampled[:blocks],
            "corpus": Text(self.train_ids, counted),
            "held-out": self.sampled[blocks:],
        }
        with self.study.console.status("the teacher reads"):
            return {
                name: score(self.teacher, text)
                for name, text in texts.items()
                if name in (*self.settings.texts, "held-out")
            }

    @property
    def prompts(self) -> Tensor:
        """Those of speculative decoding, (prompts, prompt length)."""
        return self.corpus.held_out[-self.settings.prompts :, : self.settings.prompt]

    # ---- drafts ------------------------------------------------------------------------------

    def find(self, arm: _Arm) -> dict[str, Any]:
        """Train a draft, if it is to be trained, and measure it."""
        draft = prune_depth(self.teacher, self.layers(arm.depth))
        draft.lm_head.weight.requires_grad_(False)  # and the embeddings, which are the same
        if arm.loss is None:
            course = {"curve": [self.measured(draft, 0)]}
        else:
            course = self.trained(arm, draft)
        return {**asdict(arm), **course, **self.decoded(arm, draft)}

    def trained(self, arm: _Arm, draft: LlamaForCausalLM) -> dict[str, Any]:
        """Train ``draft``, and say how that went."""
        chosen = self.settings
        text, loss_of = self.scored[str(arm.text)], LOSSES[str(arm.loss)]

        def blocks(step: int) -> slice:
            return slice(step * chosen.batch, (step + 1) * chosen.batch)

        def loss(step: int) -> Tensor:
            return loss_of(draft, text[blocks(step)], chosen.torch_dtype)

        training = Training(draft, loss, lr=chosen.lr, seed=chosen.seed)
        curve = []
        for steps in chosen.measured_at:
            self.study.train(arm.title, training, steps)
            tokens = int(text.text.counted[: blocks(steps).start].sum())
            point = partial(self.measured, draft, tokens)
            curve.append(self.study.once(f"{arm.title}: step {steps}", point))
        return {"curve": curve, "losses": training.losses, "training_seconds": training.seconds}

    def measured(self, draft: LlamaForCausalLM, tokens: int) -> dict[str, Any]:
        """How close ``draft`` is to the teacher after training on ``tokens``."""
        close = closeness(draft, self.scored["held-out"], self.settings.torch_dtype)
        return {"tokens": tokens, **asdict(close)}

    def decoded(self, arm: _Arm, draft: LlamaForCausalLM) -> dict[str, Any]:
        """Speculative decoding with ``draft``, and the teacher's speed alone just after it."""
        chosen, prompts = self.settings, self.prompts
        used = in_dtype(draft, chosen.torch_dtype)
        found: dict[str, Any] = {}
        with self.study.console.status(f"decoding: {arm.title}"):
            for name, sampled in (("greedy", False), ("sampled", True)):
                speculation = speculate(
                    self.teacher,
                    used,
                    prompts,
                    new_tokens=chosen.new_tokens,
                    sample=sampled,
                    seed=chosen.seed,
                )
                found[name] = asdict(speculation)
            found["teacher_tokens_per_second"] = decode_alone(
                self.teacher,
                prompts[:1],
                new_tokens=chosen.new_tokens,
                sample=True,
                seed=chosen.seed,
            )
        return found
