"""What the README shows of results: made from the committed files, and nothing else."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import cases, document, matrix, readme, report
from bench.gpu import report as gpu_report
from bench.provider import OURS, Provider


def block(name):
    text = (document.ROOT / "README.md").read_text()
    _, _, rest = text.partition(f"<!-- {name}:begin -->\n")
    return rest.partition(f"\n<!-- {name}:end -->")[0]


def test_readme_table_is_made_from_results(tmp_path):
    (case,) = (case for case in matrix.DEFAULT if case.kind == "logits" and not case.backward)
    other = cases.Case("logits", 8, 100, torch.bfloat16)
    names = ("torch eager", "torch.compile", "slow", "quick", "absent")
    ours, eager, compiled, slow, quick, absent = rows = [
        report.Row.of(case, provider)
        for provider in (OURS, *(Provider(name, OURS.build) for name in names))
    ]
    ours.ms_p50, ours.peak_extra_mb = 12.4, 3.2
    eager.ratio_to_ours, slow.ratio_to_ours, quick.ratio_to_ours = 10.0, 9.0, 2.0
    compiled.note, absent.note = "skipped: GEMMs predicted to take 82 s", "skipped: not installed"
    facts = {name: name for name in ("cpu", "instruction set", "torch", "threads", "date")}
    report.write_csv(tmp_path / "results.csv", facts, [*rows, report.Row.of(other, OURS)])
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    document.replace_block(page, "bench", readme.table(tmp_path / "results.csv"))
    text = page.read_text()
    title = "logits, forward_kl, bfloat16, N=256, V=151936, forward only"
    assert f"| {title} | 12 ms | 10.0 × | too slow | 2.0 × (quick) | 3 MB |  |" in text
    assert "N=8" not in text  # not one of the default cases
    assert text.startswith("before\n<!-- bench:begin -->\n|")
    assert text.endswith("\n<!-- bench:end -->\nafter\n")
    with pytest.raises(ValueError, match="must have the marks"):
        document.replace_block(page, "accuracy", "")
    assert "old" not in text


@pytest.mark.parametrize(("name", "table"), [("bench", readme.table), ("gpu", gpu_report.table)])
def test_the_readme_tells_the_committed_results(name, table):
    (path,) = {
        path
        for path in report.RESULTS.iterdir()
        if f"bench/results/{path.name})" in block(name) and path.suffix != ".svg"
    }
    assert block(name) == table(path)


def linear(shape, provider, ms=None, peak_mb=None, note=""):
    case = "linear-forward_kl-bfloat16-N16-V500-D8x24"
    record = {"what": "linear", "shape": shape, "case": case, "provider": provider, "note": note}
    return record | {"ms": ms, "peak_mb": peak_mb}


@pytest.fixture
def gpu_results(tmp_path):
    records = [
        linear("tiny", "fastdistill", 1.25, 100.0),
        linear("tiny", "bare GEMMs", 1.0, 50.0),
        linear("tiny", "quick", 2.0, 2500.0),
        linear("tiny", "large", note="OutOfMemoryError: no"),
        linear("lonely", "fastdistill", 3.0, 300.0),
        linear("lonely", "bare GEMMs", 2.0, 200.0),
    ]
    facts = {"device": "a GPU", "torch": "2.0", "date": "2026-01-01"}
    path = tmp_path / "gpu-a.json"
    path.write_text(json.dumps({"facts": facts, "stages": {"linear": {"records": records}}}))
    return path


def test_the_table_of_a_gpu_has_the_shapes_with_a_rival_and_those_who_were_measured(gpu_results):
    head, _, *rows = gpu_report.table(gpu_results).partition("\n\n")[0].splitlines()
    assert head == "| forward + backward | tiny: N 16, V 500, D 8 and 24 |"
    assert rows == [
        "| **fastdistill** | 1.2 ms, 0.1 GB |",
        "| quick | 2.0 ms, 2.5 GB |",
        "| its GEMMs and nothing else | 1.0 ms, 0.1 GB |",
    ]


def test_the_picture_of_a_gpu_is_the_same_from_the_same_results(gpu_results):
    picture = gpu_report.draw(gpu_results)
    first = picture.read_bytes()
    assert b"quick" in first
    assert b"2.0 ms, 2.5 GB" in first
    assert b"lonely" not in first
    assert gpu_report.draw(gpu_results).read_bytes() == first
