"""The page `which-divergence.md` and its picture, from the committed results of the recipes.

`python docs/figures/recipes.py` fills the page's blocks and draws `draft_acceptance.svg` beside
this file (needs matplotlib). With `--check` it writes nothing, and fails where that would change
the page, or where the picture was drawn from other results.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "results"
PAGE = ROOT / "docs" / "which-divergence.md"
PICTURE = Path(__file__).with_name("draft_acceptance.svg")
RECIPES = ("draft", "on_policy", "qat")

Report = dict[str, Any]


# ---- the page -----------------------------------------------------------------------------------


def reports(results: Path) -> Iterator[tuple[str, Report]]:
    """The recipes that have results, and these."""
    for recipe in RECIPES:
        path = results / f"{recipe}.json"
        if path.exists():
            yield recipe, json.loads(path.read_text())


def block(recipe: str, report: Report) -> str:
    """What the page says of a recipe's results."""
    tables = importlib.import_module(f"fastdistill.cli.recipes.{recipe}_tables")
    lines = [tables.markdown(report), "", source(recipe, report)]
    if recipe == "draft":
        lines = [f"![{ALTERNATIVE}](figures/{PICTURE.name})", "", *lines]
    return "\n".join(lines)


def source(recipe: str, report: Report) -> str:
    """Where a report comes from."""
    settings = report["settings"]
    return (
        f"`--recipe {report['recipe']}` on {report['machine']['processor']}, "
        f"{settings['dtype']}, seed {settings['seed']}, {report['seconds'] / 60:.0f} minutes: "
        f"`examples/results/{recipe}.json`."
    )


def filled(page: str, name: str, text: str) -> str:
    """``page`` with ``text`` between the marks of a block."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, found, rest = page.partition(begin)
    _, found_too, tail = rest.partition(end)
    if not (found and found_too):
        raise ValueError(f"{PAGE.name} must have the marks of a block {name!r}")
    return f"{head}{begin}{text}\n{end}{tail}"


def render(page: str, results: Path) -> str:
    """``page`` with what the results give in the blocks that have some."""
    for recipe, report in reports(results):
        page = filled(page, recipe, block(recipe, report))
    return page


# ---- the picture --------------------------------------------------------------------------------

STYLE: Any = {
    "svg.hashsalt": "fastdistill",  # ids of elements do not change from run to run
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.right": False,
    "axes.spines.top": False,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""One for each loss; told apart by the colour-blind."""
ALTERNATIVE = "Acceptance rate against training tokens, a line for each loss."


def digest(report: Report) -> str:
    """Of all that the picture shows."""
    shown = [[draft[key] for key in ("depth", "text", "loss", "curve")] for draft in drafts(report)]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def drafts(report: Report) -> list[Report]:
    """The drafts of a report."""
    found: list[Report] = report["drafts"]
    return found


def points(report: Report, depth: int, text: str, loss: str) -> tuple[list[float], list[float]]:
    """Thousands of training tokens and acceptance rates of a draft, from no training at all on."""
    curves = {(d["depth"], d["text"], d["loss"]): d["curve"] for d in drafts(report)}
    curve = [*curves[depth, None, None], *curves[depth, text, loss]]
    return [point["tokens"] / 1000 for point in curve], [p["acceptance_rate"] for p in curve]


def draw(report: Report, path: Path) -> None:
    """A row of panels for each text, a panel for each depth, a line for each loss."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    settings = report["settings"]
    depths, texts, losses = (settings[name] for name in ("depths", "texts", "losses"))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(texts), len(depths), squeeze=False, sharex=True, sharey=True,
            figsize=(2.4 * len(depths), 1.9 * len(texts) + 0.9), layout="constrained",
        )  # fmt: skip
        for row, text in zip(axes, texts, strict=True):
            for panel, depth in zip(row, depths, strict=True):
                for loss, colour in zip(losses, COLOURS, strict=False):
                    panel.plot(
                        *points(report, depth, text, loss), "o-", color=colour, label=loss,
                        linewidth=1.2, markersize=2.5,
                    )  # fmt: skip
                panel.set_title(f"{depth} layers, text of the {text}", fontsize=8)
        axes[0, 0].set_ylim(bottom=0)
        figure.supxlabel("training tokens, thousands", fontsize=8)
        figure.supylabel("Σ min(p, q)", fontsize=8)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        svg = StringIO()
        metadata = {"Date": None, "Creator": None, "Description": digest(report)}
        figure.savefig(svg, format="svg", metadata=metadata)
        plt.close(figure)
    lines = [line.rstrip() for line in svg.getvalue().splitlines()]
    path.write_text("\n".join(lines) + "\n")


# ---- the command --------------------------------------------------------------------------------


def stale() -> list[Path]:
    """The committed files that are not what the committed results give."""
    page = PAGE.read_text()
    found = [] if render(page, RESULTS) == page else [PAGE]
    for recipe, report in reports(RESULTS):
        if recipe == "draft" and not (PICTURE.exists() and digest(report) in PICTURE.read_text()):
            found.append(PICTURE)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: with ``--check``, 1 if a file is stale."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, but fail")
    if parser.parse_args(arguments).check:
        names = [str(path.relative_to(ROOT)) for path in stale()]
        if names:
            print(f"run python docs/figures/recipes.py: {', '.join(names)}", file=sys.stderr)
        return len(names) > 0
    PAGE.write_text(render(PAGE.read_text(), RESULTS))
    for recipe, report in reports(RESULTS):
        if recipe == "draft":
            draw(report, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
