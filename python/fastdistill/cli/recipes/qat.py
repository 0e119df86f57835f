"""A student with int4 weights, distilled from the model that it was quantised from.

Three students have the same weights in the beginning and the same format in the end: one is
quantised as it is, one is trained for it on hard labels, one by distillation. The last two see the
same text in the same order. All are judged as they are used, after conversion.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from ..corpus import blocks_of_step, next_tokens, read_text, tokenize
from ..models import prune_depth
from ..training import Training
from . import settings
from .quantise import check_groups, convert, dequantise, prepare, size
from .small_kl import small_kls
from .speculative import speculate
from .study import Study
from .text import BLOCKS_PER_FORWARD, Closeness, ScoredText, Text, score

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Settings(settings.Settings):
    """Of the full study."""

    name: ClassVar[str] = "qat"
    packages: ClassVar[Mapping[str, str]] = {"torchao": "'fastdistill[qat]'"}

    steps: int = 90
    batch: int = 4
    """Blocks of text per step."""
    block: int = 128
    """Tokens per block."""
    hard_lr: float = 3e-6
    distilled_lr: float = 1e-4
    """Each the best of four tried, for the KL to the original."""
    held_out: int = 32
    """Blocks that the students are judged on; those of the corpus, if it has fewer."""
    prompts: int = 16
    """Of speculative decoding: the beginnings of held-out blocks."""
    prompt: int = 32
    """Tokens per prompt."""
    new_tokens: int = 24
    """Per prompt."""
    checked: int = 2
    """Held-out blocks on which conversion and small KLs are checked."""
    scales: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Of the difference between student and original, where small KLs are checked."""


def quick(teacher: str, dtype: str) -> Settings:
    """The settings of ``--quick``."""
    return Settings(
        teacher,
        dtype,
        steps=4,
        batch=2,
        hard_lr=1e-5,
        distilled_lr=3e-5,
        held_out=4,
        prompts=2,
        new_tokens=6,
        checked=1,
        scales=(1.0, 0.01),
    )


def run(study: Study) -> dict[str, Any]:
    """Quantise, train and judge the students."""
    setup = _Setup.load(study)
    original = study.once("original", partial(_quality, setup.teacher, setup.held, setup.dtype))
    students = {
        "post_training": setup.post_training,
        "hard_labels": setup.hard_labels,
        "distilled": setup.distilled,
    }
    return {
        "text": setup.text,
        "original": {"perplexity": original["perplexity"], "bytes": size(setup.teacher).packed},
        "students": {name: study.once(name, find) for name, find in students.items()},
    }


@dataclass(frozen=True)
class _Setup:
    """What the students have in common."""

    study: Study
    settings: Settings
    text: str
    """The name of the corpus."""
    teacher: LlamaForCausalLM
    """The original."""
    start: LlamaForCausalLM
    """The same in float32, for students to be copies of. The head, not quantised, is frozen."""
    train: ScoredText
    """The blocks of all steps, one step after the other."""
    held: ScoredText

    @classmethod
    def load(cls, study: Study) -> _Setup:
        """Load the original, and let it score the text."""
        chosen = cast(Settings, study.settings)
        teacher, tokenizer = study.load_teacher()
        check_groups(teacher)
        start = prune_depth(teacher, range(teacher.config.num_hidden_layers))
        start.lm_head.requires_grad_(False)
        text = read_text([])
        corpus = tokenize(text, tokenizer, chosen.block)
        count = len(corpus.train)
        order = [
            blocks_of_step(count, chosen.seed, step, chosen.batch) for step in range(chosen.steps)
        ]

        def scored(name: str, ids: Tensor) -> ScoredText:
            whole = Text.whole(ids)
            hidden = study.once(name, lambda: score(teacher, whole).hidden)
            return ScoredText(whole, hidden, teacher.lm_head.weight)

        return cls(
            study,
            chosen,
            text.name,
            teacher,
            start,
            scored("training text", corpus.train[torch.cat(order)]),
            scored("held-out text", corpus.held_out[: chosen.held_out]),
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.settings.torch_dtype

    def prepared(self) -> LlamaForCausalLM:
        """A student before any training."""
        student = copy.deepcopy(self.start)
        prepare(student)
        return student

    def post_training(self) -> dict[str, Any]:
        """The student that is quantised as it is."""
        return self.judged(self.prepared())

    def hard_labels(self) -> dict[str, Any]:
        """The student that is trained on the text alone."""
        student, course = self.trained("hard_labels", self.settings.hard_lr, _hard_loss)
        return {**self.judged(student), **course}

    def distilled(self) -> dict[str, Any]:
        """The student that is trained to be like the original; small KLs are checked with it."""
        student, course = self.trained("distilled", self.settings.distilled_lr, _soft_loss)
        return {**self.judged(student), **course, "small_kl": self.small_kls(student)}

    def trained(
        self, name: str, lr: float, loss_of: Callable[..., Tensor]
    ) -> tuple[LlamaForCausalLM, dict[str, Any]]:
        """A student trained by ``loss_of(student, scored text, dtype)``, and how that went."""
        chosen, student = self.settings, self.prepared()

        def loss(step: int) -> Tensor:
            blocks = slice(step * chosen.batch, (step + 1) * chosen.batch)
            return loss_of(student, self.train[blocks], self.dtype)

        training = Training(student, loss, lr=lr, seed=chosen.seed)
        self.study.train(name, training, chosen.steps)
        return student, {"losses": training.losses, "training_seconds": training.seconds}

    def judged(self, student: LlamaForCausalLM) -> dict[str, Any]:
        """What becomes of a prepared ``student``, which is left as it is."""
        checked = self.held[: self.settings.checked]
        found = {"prepared_kl": _quality(student, checked, self.dtype)["forward_kl"]}
        converted = copy.deepcopy(student)
        convert(converted)
        found["converted_kl"] = _quality(converted, checked, self.dtype)["forward_kl"]
        used = converted.to(self.dtype)  # type: ignore[arg-type]
        found |= _quality(used, self.held, self.dtype)
        found |= {f"{kind}_bytes": count for kind, count in asdict(size(used)).items()}
        dequantise(used)
        speculation = speculate(
            self.teacher,
            used,
            self.held.text.ids[: self.settings.prompts, : self.settings.prompt],
            new_tokens=self.settings.new_tokens,
            sample=True,
            seed=self.settings.seed,
        )
        # Its speed is not that of int4 weights.
        kept = ("acceptance", "standard_error", "tokens_per_round")
        return {**found, "speculation": {name: getattr(speculation, name) for name in kept}}

    def small_kls(self, student: LlamaForCausalLM) -> list[dict[str, float]]:
        """The KLs between the original and the prepared ``student``, and nearer to the original."""
        quantised = copy.deepcopy(student)
        convert(quantised)
        dequantise(quantised)
        ids = self.held.text.ids[: self.settings.checked]
        found = small_kls(self.start, quantised, ids, self.settings.scales)
        return [asdict(each) for each in found]


def _soft_loss(student: LlamaForCausalLM, scored: ScoredText, dtype: torch.dtype) -> Tensor:
    """KL(original || student)."""
    return cast(Tensor, scored.loss(student, dtype, divergence="forward_kl"))


def _hard_loss(student: LlamaForCausalLM, scored: ScoredText, dtype: torch.dtype) -> Tensor:
    """The cross entropy of the token that follows."""
    labels = next_tokens(scored.text.ids)
    loss = scored.loss(student, dtype, labels=labels, soft_weight=0.0, hard_weight=1.0)
    return cast(Tensor, loss)


@torch.no_grad()
def _quality(model: LlamaForCausalLM, scored: ScoredText, dtype: torch.dtype) -> dict[str, float]:
    """The fields of Closeness, and the perplexity, over the tokens that another one follows."""
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    sums = dict.fromkeys([*Closeness.__dataclass_fields__, "hard_loss"], 0.0)
    for start in range(0, len(scored.text.ids), BLOCKS_PER_FORWARD):
        part = scored[start : start + BLOCKS_PER_FORWARD]
        _, metrics = part.loss(
            model,
            dtype,
            labels=next_tokens(part.text.ids),
            hard_weight=1.0,
            logits_dtype=torch.float32,  # the KL may be small
            num_items=scored.text.ids[:, 1:].numel(),
            return_metrics=True,
        )
        for name in sums:
            sums[name] += getattr(metrics, name).item()
    model.train(was_training)
    perplexity = torch.tensor(sums.pop("hard_loss")).exp().item()
    return {**sums, "perplexity": perplexity}
