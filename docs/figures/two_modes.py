"""What each divergence makes of a student that is too small for its teacher: `two_modes.svg`.

The teacher has two modes, the student one: a Gaussian over the ids, discretised, with mean and log
standard deviation as parameters. `python docs/figures/two_modes.py` fits it under each divergence
and writes the picture beside this file (needs matplotlib).
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastdistill as fd

PANELS: tuple[tuple[fd.Divergence, ...], ...] = (
    (fd.ForwardKL(),),
    (fd.SkewForwardKL(alpha=0.1), fd.SkewForwardKL(alpha=0.3)),
    (fd.SymmetricKL(weight=0.5), fd.SymmetricKL(weight=0.05)),
    (fd.JensenShannon(beta=0.1), fd.JensenShannon(beta=0.5)),
    (fd.Renyi(alpha=0.5), fd.Renyi(alpha=0.2)),
    (fd.ReverseKL(),),
    (fd.SkewReverseKL(alpha=0.5), fd.SkewReverseKL(alpha=0.1)),
    (fd.AlphaBeta(alpha=0.7, beta=0.3), fd.AlphaBeta(alpha=0.2, beta=0.8)),
    (fd.TotalVariation(),),
    (fd.NegativeLogAcceptance(),),
)
"""A panel per class; where its parameter decides what the student does, one of each."""

IDS = torch.arange(256, dtype=torch.float64)
MODES = torch.tensor([[80.0, 12.0], [180.0, 18.0]], dtype=torch.float64)
"""Mean and standard deviation of the teacher's modes."""
WEIGHTS = torch.tensor([0.6, 0.4], dtype=torch.float64)
STARTS = torch.cartesian_prod(
    torch.tensor([80.0, 120.0, 180.0], dtype=torch.float64),
    torch.tensor([12.0, 40.0], dtype=torch.float64),
)
"""Means and standard deviations to fit from; the best fit counts."""
MEAN_UNIT = 20.0
"""Ids in one unit of the mean's parameter, so that both parameters move at one learning rate."""
STEPS = 100


class Fit(NamedTuple):
    """The best student under a divergence."""

    mean: float
    deviation: float
    log_q: Tensor  # (V,)

    @property
    def covers(self) -> bool:
        """Whether it spans both modes; else it sits on one."""
        return self.deviation > 1.5 * float(MODES[:, 1].max())


def gaussian(mean: Tensor, deviation: Tensor) -> Tensor:
    """Log-probabilities (..., V) of a discretised Gaussian whose parameters are (...)."""
    x = (IDS - mean.unsqueeze(-1)) / deviation.unsqueeze(-1)
    return (-0.5 * x**2).log_softmax(-1)


def teacher() -> Tensor:
    """Log-probabilities (V,) of the mixture of the modes."""
    return (WEIGHTS.log().unsqueeze(-1) + gaussian(*MODES.T)).logsumexp(0)


def fit(divergence: fd.Divergence) -> Fit:
    """Fit the student from all starts at once, and keep the one with the smallest loss."""
    mean = (STARTS[:, 0] / MEAN_UNIT).requires_grad_()
    log_deviation = STARTS[:, 1].log().requires_grad_()
    log_p = teacher().expand(len(STARTS), -1)
    optimizer = torch.optim.Adam([mean, log_deviation], lr=0.3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        log_q = gaussian(mean * MEAN_UNIT, log_deviation.exp())
        losses = fd.distillation_loss(log_q, log_p, divergence=divergence, reduction="none")
        losses.sum().backward()
        optimizer.step()
        schedule.step()
    best = losses.argmin()
    means, deviations = mean.detach() * MEAN_UNIT, log_deviation.detach().exp()
    return Fit(float(means[best]), float(deviations[best]), log_q.detach()[best])


# ---- the picture --------------------------------------------------------------------------------

STYLE = {
    "svg.hashsalt": "fastdistill",  # ids of elements do not change from run to run
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
}
COLOURS = {True: "#0072b2", False: "#d55e00"}
"""Of students that cover both modes, and of those that seek one; told apart by the colour-blind."""
GREY = "#d9d9d9"
SYMBOLS = {"alpha": "α", "beta": "β", "weight": "w"}


def parameters(divergence: fd.Divergence) -> str:
    """The parameters of a divergence, as the divergence table writes them."""
    return ", ".join(f"{SYMBOLS[name]} = {value}" for name, value in vars(divergence).items())


def draw_panel(axes: Any, divergences: tuple[fd.Divergence, ...]) -> None:
    """The teacher as an area, each student as a line that its parameters stand beside."""
    shown = slice(None, None, 2)  # every other id: smooth, and a small file
    axes.fill(IDS[shown], teacher().exp()[shown], color=GREY, linewidth=0)
    for row, divergence in enumerate(divergences):
        student = fit(divergence)
        colour = COLOURS[student.covers]
        axes.plot(IDS[shown], student.log_q.exp()[shown], color=colour, linewidth=1.3)
        axes.text(
            0.98, 0.93 - 0.13 * row, parameters(divergence), color=colour, fontsize=7.5,
            transform=axes.transAxes, ha="right", va="top",
        )  # fmt: skip
    axes.set_title(type(divergences[0]).__name__, fontsize=8.5)
    axes.set(xticks=[], yticks=[], xlim=(0, len(IDS) - 1), ylim=(0, 0.036))


def draw(path: Path) -> None:
    """All panels, with a key above them."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(2, 5, figsize=(9.6, 3.7), layout="constrained")
        for panel, divergences in zip(axes.flat, PANELS, strict=True):
            draw_panel(panel, divergences)
        key = [
            Patch(color=GREY, label="teacher, p"),
            Line2D([], [], color=COLOURS[True], label="student, q: covers both modes"),
            Line2D([], [], color=COLOURS[False], label="student, q: seeks one mode"),
        ]
        figure.legend(handles=key, loc="outside upper center", ncols=3, frameon=False)
        figure.supxlabel("vocabulary id", fontsize=8)
        svg = StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    lines = [line.rstrip() for line in svg.getvalue().splitlines()]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    draw(Path(__file__).with_suffix(".svg"))
