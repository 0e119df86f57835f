"""What the draft recipe found, as tables and as the sentences that they come to."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from .speculative import accepted_share
from .tables import Table, print_tables

COLUMNS = (
    "layers",
    "text of",
    "loss",
    "Σ min(p, q)",
    "accepted, greedy",
    "T = 1",
    "tokens/round, greedy",
    "T = 1",
    "tokens/s, greedy",
    "T = 1",
)
LOSS_COLUMNS = ("text of", "loss", "Σ min(p, q)", "accepted, greedy", "T = 1")
NAMES, QUALITIES = 3, 3
"""Columns that say which draft it is, and next to them those that say how good."""
MODES = ("greedy", "sampled")

Draft = dict[str, Any]


def show(report: dict[str, Any], console: Console) -> None:
    """Print the tables and the sentences."""
    rows = draft_rows(report)
    quality = slice(NAMES + QUALITIES)
    tables = (  # narrow enough for a terminal
        Table("drafts", COLUMNS[quality], [row[quality] for row in rows]),
        Table("speed", _without_quality(COLUMNS), [_without_quality(row) for row in rows]),
        _losses(report),
    )
    print_tables(tables, console)
    for sentence in sentences(report):
        console.print(sentence, soft_wrap=True)


def _without_quality(row: Sequence[str]) -> list[str]:
    return [*row[:NAMES], *row[NAMES + QUALITIES :]]


def markdown(report: dict[str, Any]) -> str:
    """The sentences as a list, and the tables."""
    return "\n\n".join(
        [
            "\n".join(f"* {sentence}" for sentence in sentences(report)),
            _losses(report).markdown(NAMES - 1),
            Table("drafts", COLUMNS, draft_rows(report)).markdown(NAMES),
        ]
    )


def _losses(report: dict[str, Any]) -> Table:
    return Table("losses, all depths together", LOSS_COLUMNS, loss_rows(report))


# ---- rows ----------------------------------------------------------------------------------------


def draft_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each draft."""
    return [
        [
            str(draft["depth"]),
            draft["text"] or "",
            draft["loss"] or "not trained",
            f"{_acceptance_rate(draft):.3f}",
            *(_accepted([draft], mode) for mode in MODES),
            *(f"{draft[mode]['tokens_per_round']:.2f}" for mode in MODES),
            *(f"{draft[mode]['tokens_per_second']:.1f}" for mode in MODES),
        ]
        for draft in report["drafts"]
    ]


def loss_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for each text and loss, of the drafts of all depths."""
    return [
        [
            text or "",
            loss or "not trained",
            f"{statistics.mean(map(_acceptance_rate, drafts)):.3f}",
            *(_accepted(drafts, mode) for mode in MODES),
        ]
        for (text, loss), drafts in _grouped(report["drafts"], "text", "loss")
    ]


def _acceptance_rate(draft: Draft) -> float:
    """On held-out text of the teacher, after all of the training."""
    return float(draft["curve"][-1]["acceptance_rate"])


def _share(drafts: Sequence[Draft], mode: str) -> tuple[float, float]:
    """Accepted share of what was examined of ``drafts``, and its standard error.

    All drafts continue the same prompts, so that a prompt's tokens are one cluster.
    """
    counts = [
        [sum(of_prompt) for of_prompt in zip(*(d[mode][name] for d in drafts), strict=True)]
        for name in ("accepted", "rejected")
    ]
    return accepted_share(*counts)


def _accepted(drafts: Sequence[Draft], mode: str) -> str:
    share, error = _share(drafts, mode)
    return f"{share:.3f} ± {error:.3f}"


def _grouped(drafts: Sequence[Draft], *keys: str) -> Iterator[tuple[tuple[Any, ...], list[Draft]]]:
    """The drafts that have the same ``keys``, in the order in which these first come."""
    groups: dict[tuple[Any, ...], list[Draft]] = {}
    for draft in drafts:
        groups.setdefault(tuple(draft[key] for key in keys), []).append(draft)
    yield from groups.items()


# ---- sentences -----------------------------------------------------------------------------------


def sentences(report: dict[str, Any]) -> list[str]:
    """Which loss wins where, and whether a draft pays off."""
    trained = [draft for draft in report["drafts"] if draft["loss"]]
    return [
        *(_held_out(text, drafts) for (text,), drafts in _grouped(trained, "text")),
        *(_decoding(trained, mode) for mode in MODES),
        _pay_off(report["drafts"]),
    ]


def _held_out(text: str, drafts: Sequence[Draft]) -> str:
    """How the losses rank for each depth, trained on the ``text`` of one writer."""
    ranked = [f"{depth} layers, {_ranking(own)}" for (depth,), own in _grouped(drafts, "depth")]
    return f"Σ min(p, q) after training on text of the {text}: {'; '.join(ranked)}"


def _ranking(drafts: Sequence[Draft]) -> str:
    """The best loss and the next, and the last."""
    best, *others = sorted(drafts, key=_acceptance_rate, reverse=True)
    last = [f"last {_named(draft)}" for draft in others[1:][-1:]]
    return ", ".join([*map(_named, [best, *others[:1]]), *last])


def _named(draft: Draft) -> str:
    return f"{draft['loss']} {_acceptance_rate(draft):.3f}"


def _decoding(trained: Sequence[Draft], mode: str) -> str:
    """How the losses rank in speculative decoding, over all depths and texts."""
    groups = [(loss, _share(drafts, mode)) for (loss,), drafts in _grouped(trained, "loss")]
    groups.sort(key=lambda group: group[1][0], reverse=True)
    ranked = ", ".join(f"{loss} {share:.3f} ± {error:.3f}" for loss, (share, error) in groups)
    how = {"greedy": "greedy", "sampled": "sampled at T = 1"}[mode]
    return f"Accepted in decoding, {how}, all depths and texts together: {ranked}"


def _pay_off(drafts: Sequence[Draft]) -> str:
    """The fastest draft beside the teacher alone."""
    alone = [draft["teacher_tokens_per_second"] for draft in drafts]
    usual = statistics.median(alone)
    mode, fastest = max(
        ((mode, draft) for mode in MODES for draft in drafts),
        key=lambda each: each[1][each[0]]["tokens_per_second"],
    )
    speed = fastest[mode]["tokens_per_second"]
    pays = "pays off" if speed > max(alone) else "does not pay off"
    return (
        f"Speculative decoding {pays} here: the teacher alone makes {usual:.1f} tokens/s "
        f"({min(alone):.1f} to {max(alone):.1f} between the drafts), with the fastest draft "
        f"({fastest['depth']} layers, {fastest['loss'] or 'not trained'}, {mode}) {speed:.1f}"
    )
