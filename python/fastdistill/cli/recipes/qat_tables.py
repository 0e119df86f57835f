"""What the recipe qat found, as tables and a note."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from .tables import Table, print_tables

STUDENTS = {
    "post_training": "untrained",
    "hard_labels": "hard labels",
    "distilled": "distilled",
}
STUDENT_COLUMNS = (
    "int4 weights",
    "KL",
    "1 - TVD",
    "accepted",
    "tokens per round",
    "perplexity",
    "MB",
)
SMALL_KL_COLUMNS = (
    "scale",
    "KL, float32 inputs",
    "error of the loss",
    "KL, bfloat16 inputs",
    "error of the loss",
    "KL by bfloat16 logits",
    "KL by bfloat16 log q",
)


def show(report: dict[str, Any], console: Console) -> None:
    """Print the results."""
    print_tables(_tables(report), console)
    console.print(_note(report))


def markdown(report: dict[str, Any]) -> str:
    """The results as two tables and a note."""
    return "\n\n".join([*(table.markdown() for table in _tables(report)), _note(report)])


def _tables(report: dict[str, Any]) -> tuple[Table, Table]:
    return (
        Table("held-out text", STUDENT_COLUMNS, _student_rows(report)),
        Table("small KLs against float64", SMALL_KL_COLUMNS, _small_kl_rows(report)),
    )


def _student_rows(report: dict[str, Any]) -> list[list[str]]:
    original = report["original"]
    perplexity, size = f"{original['perplexity']:.2f}", f"{original['bytes'] / 1e6:.1f}"
    rows = [["original", "", "", "", "", perplexity, size]]
    for name, found in report["students"].items():
        decoded = found["speculation"]
        rows.append(
            [
                STUDENTS[name],
                f"{found['forward_kl']:.4f}",
                f"{found['acceptance_rate']:.3f}",
                f"{decoded['acceptance']:.2f}±{decoded['standard_error']:.2f}",
                f"{decoded['tokens_per_round']:.2f}",
                f"{found['perplexity']:.2f}",
                f"{found['packed_bytes'] / 1e6:.1f}",
            ]
        )
    return rows


def _small_kl_rows(report: dict[str, Any]) -> list[list[str]]:
    def error(found: dict[str, float], inputs: str) -> str:
        return f"{100 * (found[inputs] / found[f'{inputs}_reference'] - 1):+.4f}%"

    return [
        [
            f"{found['scale']:g}",
            f"{found['float32_reference']:.2e}",
            error(found, "float32"),
            f"{found['bfloat16_reference']:.2e}",
            error(found, "bfloat16"),
            f"{found['rounded_logits']:.2e}",
            f"{found['rounded_log_probabilities']:.2e}",
        ]
        for found in report["students"]["distilled"]["small_kl"]
    ]


def _note(report: dict[str, Any]) -> str:
    """What is the same for all students."""
    students = report["students"].values()
    changes = [abs(found["converted_kl"] - found["prepared_kl"]) for found in students]
    held = report["students"]["distilled"]["in_memory_bytes"]
    return (
        f"Conversion changes the KL by {max(changes):.1g}. MB are those of two int4 weights to a "
        f"byte; torchao, with one, holds {held / 1e6:.1f} MB."
    )
