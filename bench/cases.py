"""What a case is: sizes, dtype and direction, its name, and the work that nobody can avoid."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

import fastdistill as fd

DISTINCT_ROWS = 8
"""Inputs repeat this many rows: their float64 truth costs the same for any number of rows."""

_TURNS = 4
"""Of a half-masked case: question, answer, question, answer, as long as each other."""

PARAMETERS = {fd.Renyi: (0.5,), fd.AlphaBeta: (0.5, 0.5)}
DIVERGENCES = tuple(cls(*PARAMETERS.get(cls, ())) for cls in fd.divergences.ALL)
"""One of each class, with its default parameters where it has them."""

Kind = Literal["logits", "top_k", "linear", "linear_logits", "linear_top_k", "linear_labels"]
"""The student's logits, given or made by a head, and a teacher of the same form, one whose logits
are given, one that lists its most likely tokens, or none but the hard labels."""


@dataclass(frozen=True)
class Case:
    """One pass of a loss, averaged over the counted ones of ``rows`` tokens."""

    kind: Kind
    rows: int
    vocab: int
    dtype: torch.dtype
    divergence: fd.Divergence = field(default_factory=fd.ForwardKL)
    student_width: int = 0  # hidden size, where the student is a head
    teacher_width: int = 0  # linear only
    listed: int = 0  # K, where the teacher is a list
    backward: bool = True  # whether the gradients are made too
    half_masked: bool = False  # every other quarter of the tokens does not count
    frozen: bool = False  # the student's head is not trained: no gradient by its weight
    text: bool = False  # hidden states and heads of real models on real text, linear only
    chunk_size: int | None = None  # rows per chunk of ours; None: its own choice
    timed: bool = True
    weighed: bool = False  # whether peak memory is measured
    patience: float = 1.0  # multiplies the time that may be spent on each provider
    only: tuple[str, ...] = ()  # names of the providers; empty: all

    def __post_init__(self) -> None:
        multiple = DISTINCT_ROWS * (_TURNS if self.half_masked else 1)
        if self.rows % multiple:
            raise ValueError(f"rows must be a multiple of {multiple}, got {self.rows}")

    @property
    def has_head(self) -> bool:
        """Whether the student is a head, and its logits are to be made."""
        return self.kind.startswith("linear")

    @property
    def has_list(self) -> bool:
        """Whether the teacher is a list of tokens."""
        return self.kind.endswith("top_k")

    @property
    def has_dense_teacher(self) -> bool:
        """Whether the teacher has a logit for each token of the vocabulary."""
        return self.kind in ("logits", "linear", "linear_logits")

    @property
    def distinct(self) -> int:
        """The first rows that differ from one another; the others repeat them."""
        return self.rows if self.text else DISTINCT_ROWS

    @property
    def counted(self) -> int:
        """Rows that count."""
        return self.rows // 2 if self.half_masked else self.rows

    # ---- name ---------------------------------------------------------------------------------

    @property
    def objective(self) -> str:
        """What is minimised."""
        return "cross_entropy" if self.kind == "linear_labels" else self.divergence.name

    @property
    def variant(self) -> str:
        """Everything that is not the usual pass on normal numbers; empty where all is."""
        parts = {
            "half_masked": self.half_masked,
            "frozen": self.frozen,
            "text": self.text,
            "forward_only": not self.backward,
        }
        if self.chunk_size is not None:
            parts[f"C{self.chunk_size}"] = True
        return "-".join(part for part, present in parts.items() if present)

    @property
    def name(self) -> str:
        """Kind, objective, dtype, sizes, variant."""
        parts = [self.kind, self.objective, str(self.dtype).removeprefix("torch.")]
        parts += [f"N{self.rows}", f"V{self.vocab}"]
        if self.kind == "linear":
            parts.append(f"D{self.student_width}x{self.teacher_width}")
        elif self.has_head:
            parts.append(f"D{self.student_width}")
        if self.has_list:
            parts.append(f"K{self.listed}")
        return "-".join(filter(None, [*parts, self.variant]))

    # ---- work ---------------------------------------------------------------------------------

    @property
    def logits_bytes(self) -> int:
        """Bytes of one (N, V) tensor of the case's dtype."""
        return self.rows * self.vocab * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes that must move: counted inputs read once, gradients of all written once."""
        own = self.student_width if self.has_head else self.vocab
        weight = self.vocab * self.student_width if self.has_head else 0
        elements = self.counted * own + weight
        if self.backward:
            elements += self.rows * own + (0 if self.frozen else weight)
        if self.kind == "linear":
            elements += (self.counted + self.vocab) * self.teacher_width
        elif self.has_dense_teacher:
            elements += self.counted * self.vocab
        listed = {"top_k": self.listed * (8 + 4), "labels": 8}  # int64 ids, float32 log-probability
        lists = sum(size for end, size in listed.items() if self.kind.endswith(end))
        return elements * self.dtype.itemsize + self.counted * lists

    @property
    def exps(self) -> int:
        """Exponentials that must be taken: one per logit of each dense side."""
        return self.counted * self.vocab * (2 if self.has_dense_teacher else 1)

    @property
    def gemm_widths(self) -> tuple[int, int, int]:
        """Summed widths of the GEMMs: logits, gradient by hidden, gradient by weight."""
        teacher = self.teacher_width if self.kind == "linear" else 0
        gradient = self.student_width if self.backward else 0
        return self.student_width + teacher, gradient, 0 if self.frozen else gradient

    @property
    def flops(self) -> int:
        """Of the GEMMs."""
        return 2 * self.counted * self.vocab * sum(self.gemm_widths)

    def mask(self) -> torch.Tensor | None:
        """(N,) bool, True where a token counts; None where all do."""
        if not self.half_masked:
            return None
        return torch.arange(self.rows) // (self.rows // _TURNS) % 2 == 1

    def quick(self) -> Case:
        """The same case, some hundred times smaller; the sizes of real models stay."""
        multiple = DISTINCT_ROWS * (_TURNS if self.half_masked else 1)
        rows = max(multiple, self.rows // 8 // multiple * multiple)
        if self.text:
            return replace(self, rows=rows)
        return replace(
            self,
            rows=rows,
            vocab=self.vocab // 8,
            student_width=self.student_width // 4,
            teacher_width=self.teacher_width // 4,
        )
