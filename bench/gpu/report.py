"""The linear loss on a GPU, as committed results have it: the README's table, and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..document import ROOT, replace_block
from ..plot import COLOURS, OURS_COLOUR, save, style
from ..provider import OURS
from ..report import RESULTS
from .linear import BARE_GEMMS
from .process import Record

_NAMES = {OURS.name: "**fastdistill**", BARE_GEMMS.name: "its GEMMs and nothing else"}


class Found(NamedTuple):
    """What a file of results says of the linear loss."""

    facts: dict[str, str]
    measured: dict[str, dict[str, Record]]  # by shape and provider, those that have a time

    @property
    def providers(self) -> list[str]:
        """All that were measured: ours, the others as they were run, the bare GEMMs."""
        names = dict.fromkeys(name for records in self.measured.values() for name in records)
        return sorted(names, key=lambda name: (name == BARE_GEMMS.name) - (name == OURS.name))

    @property
    def place(self) -> str:
        """On which GPU, with what."""
        return f"{self.facts['device']}, torch {self.facts['torch']}, {self.facts['date']}"


def read(path: Path) -> Found:
    """The shapes in which somebody else was measured, too."""
    content: dict[str, Any] = json.loads(path.read_text())
    stage = content["stages"].get("linear", {"records": []})
    measured: dict[str, dict[str, Record]] = {}
    for record in stage["records"]:
        if record.get("ms") is not None:
            measured.setdefault(record["shape"], {})[record["provider"]] = record
    alone = {OURS.name, BARE_GEMMS.name}
    return Found(
        content["facts"],
        {shape: records for shape, records in measured.items() if not records.keys() <= alone},
    )


def sizes(record: Record) -> str:
    """N, V and hidden sizes of a record's case, in words that fit above a column."""
    named = [
        part for part in record["case"].split("-") if part[:1] in "NVD" and part[1:2].isdigit()
    ]
    return ", ".join(f"{part[0]} {part[1:].replace('x', ' and ')}" for part in named)


# ---- table ------------------------------------------------------------------------------------


def _cell(record: Record | None) -> str:
    if record is None:
        return ""
    return f"{record['ms']:.1f} ms, {record['peak_mb'] / 1000:.1f} GB"


def _lines(found: Found) -> Iterator[list[str]]:
    yield [
        "forward + backward",
        *(f"{shape}: {sizes(records[OURS.name])}" for shape, records in found.measured.items()),
    ]
    yield ["---", *("--:" for _ in found.measured)]
    for name in found.providers:
        cells = (_cell(records.get(name)) for records in found.measured.values())
        yield [_NAMES.get(name, name), *cells]


def table(path: Path) -> str:
    """Markdown: time, and memory beyond the inputs, of each provider and shape."""
    found = read(path)
    lines = ["| " + " | ".join(cells) + " |" for cells in _lines(found)]
    measured = f"{found.place}; `python -m bench.gpu`, whose `--wheels` are the other packages"
    everything = f"[`{path.name}`](bench/results/{path.name})"
    picture = f"bench/results/{path.with_suffix('.svg').name}"
    return "\n".join(
        [
            *lines,
            "",
            f"Time, and memory beyond the inputs ({measured}); all of it in {everything}.",
            "",
            f"![Times of the linear loss on a GPU]({picture})",
        ]
    )


# ---- picture ----------------------------------------------------------------------------------


def draw(path: Path) -> Path:
    """Bars of the times, one panel for each shape; the dashed line is the GEMMs' time."""
    from matplotlib.figure import Figure

    found = read(path)
    names = [name for name in found.providers if name != BARE_GEMMS.name]
    with style():
        width = 1.6 + 2.2 * len(found.measured)
        figure = Figure(figsize=(width, 0.9 + 0.22 * len(names)), layout="constrained")
        panels = figure.subplots(1, len(found.measured), squeeze=False, sharey=True)[0]
        for axes, (shape, records) in zip(panels, found.measured.items(), strict=True):
            for position, name in enumerate(names):
                if name not in records:
                    continue
                ms = records[name]["ms"]
                axes.barh(position, ms, color=OURS_COLOUR if name == OURS.name else COLOURS[0])
                axes.text(ms, position, f" {_cell(records[name])}", va="center", fontsize=6)
            if BARE_GEMMS.name in records:
                axes.axvline(
                    records[BARE_GEMMS.name]["ms"], color="grey", linestyle="--", linewidth=0.8
                )
            axes.margins(x=0.45)
            axes.set_title(f"{shape}: {sizes(records[OURS.name])}", fontsize=6)
            axes.set(xlabel="ms", yticks=range(len(names)), yticklabels=names)
        panels[0].invert_yaxis()
        figure.suptitle(found.place, fontsize=7)
        return save(figure, path.with_suffix(".svg"))


# ---- files ------------------------------------------------------------------------------------


def committed() -> Path | None:
    """The newest committed results of a GPU."""
    paths = RESULTS.glob("gpu-*.json")
    return max(paths, key=lambda path: read(path).facts["date"], default=None)


def update() -> None:
    """Write the table into the README, and draw the picture beside the results."""
    path = committed()
    if path is not None:
        replace_block(ROOT / "README.md", "gpu", table(path))
        draw(path)
