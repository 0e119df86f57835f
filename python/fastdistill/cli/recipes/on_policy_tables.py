"""What the on-policy recipe found, as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from .on_policy import name_of
from .prompted import OTHERS
from .tables import Table, print_tables

KL_COLUMNS = (
    "student",
    "KL(teacher ∥ student), corpus",
    "the same, teacher's text",
    "KL(student ∥ teacher), own text",
    "1 - TVD, own text",
)
TEXT_COLUMNS = (
    "student",
    "entropy, own text",
    "-log p of the teacher, own text",
    "tokens trained on",
    "seconds sampling",
    "scoring",
    "training",
)
NOT_DISTILLED, WARM_UP, TEACHER = "not distilled", "warm-up alone", "the teacher itself"


def show(report: dict[str, Any], console: Console) -> None:
    """Print the results."""
    print_tables(_tables(report), console)


def markdown(report: dict[str, Any]) -> str:
    """The results as two tables."""
    return "\n\n".join(table.markdown() for table in _tables(report))


def _tables(report: dict[str, Any]) -> tuple[Table, Table]:
    return (
        Table("held-out text; nats per token", KL_COLUMNS, _kl_rows(report)),
        Table("text and cost; nats per token", TEXT_COLUMNS, _text_rows(report)),
    )


def _students(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The label of each student, and what was found of it."""
    return [
        (NOT_DISTILLED, report["undistilled"]),
        (WARM_UP, report["start"]),
        *((name_of(way["writer"], way["divergence"]), way) for way in report["ways"]),
    ]


def _kl_rows(report: dict[str, Any]) -> list[list[str]]:
    rows = []
    for label, found in _students(report):
        corpus, teacher, own = (found["held_out"][writer] for writer in (*OTHERS, "student"))
        rows.append(
            [
                label,
                f"{corpus['forward_kl']:.3f}",
                f"{teacher['forward_kl']:.3f}",
                f"{own['reverse_kl']:.3f} ± {own['reverse_kl_error']:.3f}",
                f"{own['acceptance_rate']:.3f}",
            ]
        )
    return rows


def _text_rows(report: dict[str, Any]) -> list[list[str]]:
    rows = []
    for label, found in _students(report):
        own = found["held_out"]["student"]
        # Of the token that follows, whichever the student may sample: a cross entropy.
        surprise = own["student_entropy"] + own["reverse_kl"]
        cost = (
            [str(found["tokens"]), *(f"{spent:.0f}" for spent in found["seconds"].values())]
            if "tokens" in found
            else [""] * 4
        )
        rows.append([label, f"{own['student_entropy']:.3f}", f"{surprise:.3f}", *cost])
    entropy = f"{report['start']['held_out']['teacher']['teacher_entropy']:.3f}"
    return [*rows, [TEACHER, entropy, entropy, *[""] * 4]]
