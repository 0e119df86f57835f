"""``python -m bench.gpu.small``: every kernel on few tokens, with one block and with several."""

from __future__ import annotations

import itertools

import torch

import fastdistill as fd

from ..cases import DIVERGENCES
from .rows import forced

ROWS, LISTED = 5, 7
VOCABS = (1003, 4104)
"""One that no copy in bulk can take, and one that is kept in shared memory."""
DTYPES = (torch.bfloat16, torch.float32)
SHAPES = ((1, 256), (4, 64))
TAILS = ("bucket", "renormalize", "zero", "uniform")


def main() -> None:
    """Values and gradients of all combinations, with hard labels."""
    labels = torch.arange(ROWS, device="cuda")
    for vocab, dtype, shape in itertools.product(VOCABS, DTYPES, SHAPES):
        options = {"device": "cuda", "dtype": dtype}
        student = torch.randn(ROWS, vocab, **options, requires_grad=True)
        logits = torch.randn(ROWS, vocab, **options)
        log_p, ids = logits.float().log_softmax(-1).topk(LISTED)
        teachers = (logits, *(fd.TopKTeacher(ids, log_p, tail=tail) for tail in TAILS))
        for teacher, divergence in itertools.product(teachers, DIVERGENCES):
            if getattr(teacher, "tail", None) == "zero" and divergence.needs_teacher_support:
                continue
            with forced(*shape):
                fd.distillation_loss(
                    student, teacher, divergence=divergence, labels=labels, hard_weight=0.5
                ).backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
