"""Trains a small student towards a teacher's head, with fastdistill and again in plain torch.

``python -m student_training`` ends with an error unless the loss falls and both agree at each step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastdistill as fd

TOKENS, VOCAB, STUDENT, TEACHER = 64, 500, 16, 24
STEPS = 20

Loss = Callable[[Tensor, Tensor, fd.TeacherHead], Tensor]


def plain_torch_loss(hidden: Tensor, weight: Tensor, teacher: fd.TeacherHead) -> Tensor:
    """The mean of KL(teacher || student) over the tokens, from whole logits."""
    log_q = F.log_softmax(hidden @ weight.T, -1)
    log_p = F.log_softmax(teacher.hidden @ teacher.weight.T, -1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def train(loss_of: Loss) -> list[float]:
    """The loss of each step."""
    torch.manual_seed(0)
    teacher = fd.TeacherHead(torch.randn(TOKENS, TEACHER), torch.randn(VOCAB, TEACHER))
    inputs = torch.randn(TOKENS, STUDENT)
    body, head = nn.Linear(STUDENT, STUDENT), nn.Linear(STUDENT, VOCAB, bias=False)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=0.1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(body(inputs).tanh(), head.weight, teacher)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train twice and compare."""
    losses = train(fd.linear_distillation_loss)
    expected = train(plain_torch_loss)
    print(f"fastdistill {fd.__version__}, torch {torch.__version__}, {fd._C.current_isa()}")
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}; plain torch {expected[-1]:.4f}")
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=0)
    if not losses[-1] < losses[0] / 2:
        raise SystemExit("the loss did not fall")


if __name__ == "__main__":
    main()
