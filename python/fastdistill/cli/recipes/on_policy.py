"""On-policy distillation (GKD, arXiv:2306.13649): the student samples, the teacher scores.

A student made of some of the teacher's layers is distilled until its own text is worth scoring.
From there it goes on in several ways, for as many tokens each: on text that it samples itself, anew
at each step, on the corpus, and on text that the teacher sampled; by several divergences. The texts
of a step continue the same prompts. What becomes of it is judged on held-out text of all three.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from ..models import prune_depth
from ..training import Training
from . import settings
from .prompted import OTHERS, Prompted
from .ratio import ratio
from .study import Study
from .text import ScoredText, Text, score

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

METRICS = (
    "forward_kl",
    "reverse_kl",
    "acceptance_rate",
    "top1_agreement",
    "student_entropy",
    "teacher_entropy",
)
"""Of fastdistill.Metrics, averaged over the counted tokens of a text."""


@dataclass(frozen=True)
class Settings(settings.Settings):
    """Of the full study."""

    name: ClassVar[str] = "on-policy"

    share: float = 0.3
    """Of the teacher's layers, kept in the student: half of them the first ones, half the last."""
    block: int = 64
    """Tokens per block of text."""
    prompt: int = 16
    """Of these, the tokens that are given; what follows them is trained and judged on."""
    batch: int = 8
    """Blocks of text per step."""
    warmup_steps: int = 120
    """On whole blocks of the corpus, by the forward KL; the same for all."""
    warmup_lr: float = 1e-3
    steps: int = 32
    """After the warm-up, in each way."""
    lr: float = 2e-4
    held_out: int = 48
    """Blocks that the students are judged on; those of the corpus, if it has fewer."""
    ways: tuple[tuple[str, str], ...] = (
        ("student", "reverse_kl"),
        ("student", "jensen_shannon"),
        ("corpus", "forward_kl"),
        ("corpus", "reverse_kl"),
        ("corpus", "jensen_shannon"),
        ("teacher", "forward_kl"),
        ("teacher", "reverse_kl"),
        ("teacher", "jensen_shannon"),
    )
    """To go on after the warm-up: whose text, and by which divergence."""


def quick(teacher: str, dtype: str) -> Settings:
    """The settings of ``--quick``."""
    return Settings(
        teacher,
        dtype,
        share=0.2,
        block=32,
        prompt=8,
        batch=6,
        warmup_steps=24,
        steps=6,
        held_out=16,
        ways=(("student", "reverse_kl"), ("corpus", "forward_kl")),
    )


def run(study: Study) -> dict[str, Any]:
    """Warm a student up, let it go on in each way, and judge what becomes of it."""
    students = _Students(study)
    undistilled = study.once("undistilled", lambda: students.judged(students.cut_out()))
    warm = study.once("warm-up", students.warm_up)
    start = study.once("start", lambda: students.judged(students.cut_out(warm)))
    ways = []
    for writer, divergence in students.settings.ways:
        name = name_of(writer, divergence)
        ways.append(study.once(name, partial(students.gone_on, warm, name, writer, divergence)))
    return {
        "text": students.prompted.source,
        "layers": students.layers,
        "undistilled": undistilled,
        "start": start,
        "ways": ways,
    }


class _Students:
    """How students are made, trained and judged."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.settings = cast(Settings, study.settings)
        self.dtype = self.settings.torch_dtype
        self.teacher, tokenizer = study.load_teacher()
        self.layers = _kept(self.teacher.config.num_hidden_layers, self.settings.share)
        self.prompted = Prompted(study, self.settings, self.teacher, tokenizer)

    def cut_out(self, weights: Mapping[str, Tensor] | None = None) -> LlamaForCausalLM:
        """A student with layers of the teacher, or with those in ``weights``.

        Embeddings and head are the teacher's and stay so.
        """
        student = prune_depth(self.teacher, self.layers)
        student.get_input_embeddings().requires_grad_(False)
        student.lm_head.requires_grad_(False)
        student.load_state_dict(weights or {}, strict=False)
        return student

    def warm_up(self) -> dict[str, Tensor]:
        """The weights of the layers from which all ways start."""
        chosen, student = self.settings, self.cut_out()

        def loss(step: int) -> Tensor:
            scored = score(self.teacher, Text.whole(self.prompted.blocks(step)))
            return cast(Tensor, scored.loss(student, self.dtype, divergence="forward_kl"))

        training = Training(student, loss, lr=chosen.warmup_lr, seed=chosen.seed)
        self.study.train("warm-up", training, chosen.warmup_steps)
        return {name: p.detach() for name, p in student.named_parameters() if p.requires_grad}

    def gone_on(
        self, weights: Mapping[str, Tensor], name: str, writer: str, divergence: str
    ) -> dict[str, Any]:
        """What becomes of the student with ``weights`` in the way of that ``name``."""
        chosen, student, account = self.settings, self.cut_out(weights), _Account()

        def loss(step: int) -> Tensor:
            if writer in OTHERS:
                blocks = slice(step * chosen.batch, (step + 1) * chosen.batch)
                scored = self.prompted.training(writer).scored[blocks]
            else:
                scored = self.sampled_and_scored(student, step, account)
            account.tokens += int(scored.text.counted.sum())
            return cast(Tensor, scored.loss(student, self.dtype, divergence=divergence))

        if writer in OTHERS:
            self.prompted.training(writer)  # its time is not that of the first step
        training = _Accounted(student, loss, account, lr=chosen.lr, seed=chosen.seed)
        self.study.train(name, training, chosen.steps)
        seconds = {
            "sampling": account.sampling_seconds,
            "scoring": account.scoring_seconds,
            "training": training.seconds - account.sampling_seconds - account.scoring_seconds,
        }
        if writer in OTHERS:
            written = self.prompted.training(writer)
            seconds |= {"sampling": written.sampling_seconds, "scoring": written.scoring_seconds}
        return {
            "writer": writer,
            "divergence": divergence,
            "tokens": account.tokens,
            "seconds": seconds,
            "losses": training.losses,
            **self.judged(student),
        }

    def sampled_and_scored(
        self, student: LlamaForCausalLM, step: int, account: _Account
    ) -> ScoredText:
        """The text of a step on-policy: it depends on the step and the weights alone."""
        started = time.perf_counter()
        text = self.prompted.by_student(student, step)
        sampled = time.perf_counter()
        scored = score(self.teacher, text)
        account.sampling_seconds += sampled - started
        account.scoring_seconds += time.perf_counter() - sampled
        return scored

    def judged(self, student: LlamaForCausalLM) -> dict[str, Any]:
        """How close ``student`` is to the teacher on held-out text of each writer."""
        student.eval()  # type: ignore[no-untyped-call]
        texts = {
            **self.prompted.held_out,
            "student": self.prompted.held_out_by_student(student),
        }
        return {"held_out": {w: _quality(student, text, self.dtype) for w, text in texts.items()}}


@dataclass
class _Account:
    """What the steps of a training took besides the training."""

    tokens: int = 0
    """That counted."""
    sampling_seconds: float = 0.0
    scoring_seconds: float = 0.0


class _Accounted(Training):
    """A training whose account is saved with it."""

    def __init__(
        self,
        student: LlamaForCausalLM,
        loss: Callable[[int], Tensor],
        account: _Account,
        *,
        lr: float,
        seed: int,
    ) -> None:
        super().__init__(student, loss, lr=lr, seed=seed)
        self._account = account

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "account": asdict(self._account)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        vars(self._account).update(state["account"])


def name_of(writer: str, divergence: str) -> str:
    """Of a way, in checkpoints, progress bars and tables."""
    return f"{divergence} on text of the {writer}"


def _kept(depth: int, share: float) -> list[int]:
    """The layers that a student keeps of a teacher with ``depth`` of them; two or more."""
    count = min(max(2, round(share * depth)), depth)
    last = count // 2
    return [*range(count - last), *range(depth - last, depth)]


@torch.no_grad()
def _quality(student: LlamaForCausalLM, scored: ScoredText, dtype: torch.dtype) -> dict[str, float]:
    """METRICS, and the standard error of the reverse KL."""
    reverse_kl, metrics = scored.loss(
        student, dtype, divergence="reverse_kl", reduction="none", return_metrics=True
    )
    _, error = ratio(reverse_kl.double().sum(1), scored.text.counted.sum(1))
    return {
        **{name: getattr(metrics, name).item() for name in METRICS},
        "reverse_kl_error": error,
    }
