"""The page on which divergence is for which job, and its picture, say what the results do."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs fastdistill[distill]")
pytest.importorskip("transformers", reason="needs fastdistill[distill]")

SCRIPT = Path(__file__).parent.parent / "docs" / "figures" / "recipes.py"
LOSSES = ("ForwardKL", "JensenShannon")


@pytest.fixture
def recipes() -> Any:
    spec = importlib.util.spec_from_file_location("recipes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(recipes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script where page, picture and results are those of a directory of its own."""
    (tmp_path / "page.md").write_text(recipes.PAGE.read_text())
    monkeypatch.setattr(recipes, "ROOT", tmp_path)
    monkeypatch.setattr(recipes, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(recipes, "PICTURE", tmp_path / "draft_acceptance.svg")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return recipes


def report() -> dict[str, Any]:
    """Of the draft recipe, with made-up numbers."""
    decoded = {
        "accepted": [4, 6],
        "rejected": [10, 10],
        "tokens_per_round": 1.4,
        "tokens_per_second": 8.0,
    }
    hows = [(None, None), *(("teacher", loss) for loss in LOSSES)]
    drafts = [
        {
            "depth": depth,
            "text": text,
            "loss": loss,
            "curve": [{"tokens": 1000 * bool(loss), "acceptance_rate": 0.01 * depth + 0.1 * n}],
            "greedy": decoded,
            "sampled": decoded,
            "teacher_tokens_per_second": 20.0,
        }
        for depth in (4, 8)
        for n, (text, loss) in enumerate(hows)
    ]
    settings = {"dtype": "bfloat16", "seed": 0}
    settings |= {"depths": [4, 8], "texts": ["teacher"], "losses": [*LOSSES]}
    machine = {"processor": "A processor"}
    return {
        "recipe": "draft",
        "settings": settings,
        "machine": machine,
        "seconds": 1800,
        "drafts": drafts,
    }


def write(site: Any, found: dict[str, Any]) -> None:
    (site.RESULTS / "draft.json").write_text(json.dumps(found))


def test_committed_page_and_picture_are_what_the_committed_results_give(recipes: Any) -> None:
    assert recipes.main(["--check"]) == 0


def test_what_is_written_passes_and_what_differs_does_not(
    site: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    write(site, report())
    assert site.main(["--check"]) == 1
    assert "page.md, draft_acceptance.svg" in capsys.readouterr().err
    assert site.main([]) == 0
    page = site.PAGE.read_text()
    assert "| 8 | teacher | JensenShannon | 0.280 | 0.333 ± 0.044 |" in page
    assert "A processor, bfloat16, seed 0, 30 minutes" in page
    assert site.main(["--check"]) == 0
    site.PAGE.write_text(page.replace("0.280", "0.290"))
    assert site.main(["--check"]) == 1
    assert "page.md" in capsys.readouterr().err
    assert site.main([]) == 0
    assert site.PAGE.read_text() == page
    other = report()
    other["drafts"][1]["curve"][0]["tokens"] += 1  # which no table shows
    write(site, other)
    assert site.stale() == [site.PICTURE]


def test_prose_and_blocks_without_results_are_left_alone(site: Any) -> None:
    page = site.PAGE.read_text().replace("# Which", "Prose.\n\n# Which")
    page = site.filled(page, "qat", "a table")
    assert site.render(page, site.RESULTS) == page
    write(site, report())
    rendered = site.render(page, site.RESULTS)
    assert site.filled(rendered, "draft", "") == site.filled(page, "draft", "")
    with pytest.raises(ValueError, match="must have the marks of a block 'draft'"):
        site.render("No marks.", site.RESULTS)


def test_picture_shows_every_draft_from_no_training_on(site: Any) -> None:
    pytest.importorskip("matplotlib")
    found = report()
    assert site.points(found, 8, "teacher", "JensenShannon") == (
        [0, 1],
        [0.08, pytest.approx(0.28)],
    )
    site.draw(found, site.PICTURE)
    drawn = site.PICTURE.read_text()
    for text in (*LOSSES, "4 layers, text of the teacher", "8 layers, text of the teacher"):
        assert drawn.count(f">{text}</text>") == 1
    assert "0.25" in drawn  # the axis that all panels share goes as far as the best draft
    site.draw(found, site.PICTURE)
    assert site.PICTURE.read_text() == drawn


def test_there_is_a_colour_for_each_loss(recipes: Any) -> None:
    from fastdistill.cli.recipes.draft_losses import LOSSES

    assert len(set(recipes.COLOURS)) == len(LOSSES)
