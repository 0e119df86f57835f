"""The commands of the benchmark: what they understand, compare, conclude and draw."""

import contextlib
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import __main__ as command_line
from bench import compare, matrix, plot, report, revision, scaling
from bench.cases import Case
from bench.contestant import Contestant
from bench.memory import Peak
from bench.provider import OURS, Provider

FACTS = dict.fromkeys(("cpu", "instruction set", "torch", "threads", "date"), "it")

# ---- command line -----------------------------------------------------------------------------


def test_speed_is_what_is_done_without_a_command():
    options = command_line.parse(["--quick", "--only", "top_k"])
    assert (options.command, options.quick, options.only) == ("speed", True, "top_k")
    assert command_line.parse([]).command == "speed"
    assert command_line._budget(options) < command_line._budget(command_line.parse([]))
    assert command_line.parse(["compare", "HEAD~1"]).revision == "HEAD~1"


def test_a_plot_needs_a_file():
    with pytest.raises(SystemExit, match="--plot needs --output"):
        command_line.parse(["speed", "--plot"])
    assert command_line.parse(["speed", "--plot", "--output"]).output == Path()


def test_a_pattern_that_nothing_matches_is_an_error():
    with pytest.raises(SystemExit, match="no case matches nonsense"):
        command_line._cases(command_line.parse(["--only", "nonsense"]))
    assert command_line._cases(command_line.parse(["--all"])) == list(matrix.ALL)


# ---- compare ----------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path):
    """Two commits: the file says "old" in the first."""
    folder = tmp_path / "repository"
    settings = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")

    def git(*arguments):
        subprocess.run(["git", "-C", folder, *settings, *arguments], check=True)

    folder.mkdir()
    git("init", "-q")
    for text in ("old", "new"):
        (folder / "version").write_text(text)
        git("add", "version")
        git("commit", "-q", "-m", text)
    return folder


def worktrees(repository):
    command = ["git", "-C", repository, "worktree", "list"]
    return subprocess.check_output(command, text=True).splitlines()


def copy_version(source, target):
    target.mkdir()
    (target / "version").write_text((source / "version").read_text())


def test_a_revision_is_built_from_its_own_files_and_removed(repository):
    with revision.built("HEAD~1", copy_version, repository) as target:
        assert (target / "version").read_text() == "old"
        assert len(worktrees(repository)) == 2
    assert not target.exists()
    assert len(worktrees(repository)) == 1
    assert (repository / "version").read_text() == "new"


def test_nothing_is_left_of_a_build_that_fails(repository):
    folders = []

    def fails(source, _):
        folders.append(source)
        raise OSError("no compiler")

    with pytest.raises(OSError, match="no compiler"), revision.built("HEAD", fails, repository):
        pass
    assert len(worktrees(repository)) == 1
    assert not folders[0].exists()


def test_an_unknown_revision_is_named(repository):
    with pytest.raises(ValueError, match="Needed a single revision"):
        revision.resolve("no-such-branch", repository)


def test_a_process_imports_from_the_folder_before_any_other_place(tmp_path):
    package = tmp_path / "fastdistill"
    package.mkdir()
    (package / "__init__.py").touch()
    command, environment = revision.importing_from(tmp_path)
    program = (
        "import fastdistill, importlib.util; "
        "print(fastdistill.__file__, importlib.util.find_spec('torch') is not None)"
    )
    output = subprocess.check_output([*command, "-c", program], env=environment, text=True)
    assert output.split() == [str(package / "__init__.py"), "True"]


def test_who_goes_first_alternates():
    calls, ticks = [], itertools.count(1)

    def turn(name):
        return lambda: calls.append(name) or float(next(ticks))

    pairs = compare.take_turns(turn("a"), turn("b"), budget=1e9, most_rounds=4)
    assert "".join(calls) == "abbaabba"
    assert pairs == [(1, 2), (4, 3), (5, 6), (8, 7)]


def test_turns_end_with_the_budget_and_not_before_three():
    one = lambda: 1.0  # noqa: E731
    assert len(compare.take_turns(one, one, budget=9.0)) == 5
    assert len(compare.take_turns(one, one, budget=0.0)) == 3


def test_ratios_are_of_pairs():
    pairs = [(0.001, 0.002), (0.010, 0.020), (0.100, 0.200)]
    cells = compare.line("case", pairs)
    assert cells == ["case", "10.000", "20.000", "2.000", "2.000", "2.000", "3"]


def test_a_contestant_passes_over_its_case():
    case = Case("logits", 8, 100, torch.float32)
    with contextlib.closing(Contestant(case, None)) as contestant:
        assert contestant.package().parent.name == "fastdistill"
        assert 0.0 < contestant.turn() < 60.0


# ---- scaling ----------------------------------------------------------------------------------


def test_an_exponent_is_the_slope_of_the_logarithms():
    assert scaling.exponent((x, 3 * x**1.5) for x in (1, 2, 8, 64)) == pytest.approx(1.5)
    assert scaling.exponent((x, 7.0) for x in (1, 2, 8)) == pytest.approx(0)


def test_curves_have_the_stated_ends():
    points = scaling.curves(quick=False)
    ends = {curve: (of[0].x, of[-1].x) for curve, of in points.items()}
    assert ends["N"] == (64, 8192)
    assert ends["V"] == (8192, 262144)
    assert ends["K"] == (1, 1024)
    assert all(point.case.rows == point.x for point in points["N"])
    assert all(point.case.chunk_size == point.x for point in points["chunk"])
    quick = scaling.curves(quick=True)
    assert sum(point.case.flops for point in quick["N"]) < 0.05 * sum(
        point.case.flops for point in points["N"]
    )


def rows_of_a_curve():
    """Time linear in N; 100 MB of chunks as soon as there are several."""
    points = scaling.curves(quick=False)["N"]
    row = scaling.Row("N", 0, "case", 0, 32768, 0, 1, 640, 3, 1.0, 1.0, 1.0, 0.0, 8.0)
    return [
        replace(row, x=p.x, n=p.x, ms_p20=0.9 * p.x, ms_p50=p.x, ms_p80=1.1 * p.x,
                peak_extra_mb=8 + min(100, p.x / 8))
        for p in points
    ]  # fmt: skip


def test_a_statement_follows_from_the_rows():
    text = scaling.statement(rows_of_a_curve())
    assert "from N = 64 to 8192 time goes from 64 to 8.19e+03 ms, as N^1.00" in text
    assert "from 8 to 100 MB, where there are several chunks 100 to 100 MB" in text


def test_points_of_a_curve_are_measured_with_their_threads(monkeypatch):
    seen = []
    monkeypatch.setattr(
        scaling, "measure_peak",
        lambda *_: seen.append(torch.get_num_threads()) or Peak(1.0, True),
    )  # fmt: skip
    case = Case("linear", 32, 64, torch.float32, student_width=8, teacher_width=8, chunk_size=16)
    before = torch.get_num_threads()
    rows = scaling.measure([scaling.Point("threads", n, case, n) for n in (1, 2)], budget=0.0)
    assert seen == [1, 2]
    assert torch.get_num_threads() == before
    assert [(row.x, row.threads, row.chunk, row.runs) for row in rows] == [
        (1, 1, 16, 1),
        (2, 2, 16, 1),
    ]
    assert rows[0].gradients_mb == pytest.approx((32 + 64) * 8 * 4 / 1e6)


# ---- pictures ---------------------------------------------------------------------------------


def rows_of_cases():
    fast, slow = matrix.ALL[0], matrix.ALL[4]
    names = ("torch eager", "torch.compile", "liger")
    rows = [
        report.Row.of(case, provider)
        for case in (fast, slow)
        for provider in (OURS, *(Provider(name, OURS.build) for name in names))
    ]
    for row, ratio in zip(rows, (1, 50, 5, 0.5, 1, None, 3, 2), strict=True):
        row.ms_p50, row.ratio_to_ours = ratio and 10.0 * ratio, ratio
    rows[5].note = "skipped: GEMMs predicted to take 82 s"
    return rows


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        (rows_of_cases(), ["too slow", "0.5 liger", "time / time of fastdistill"]),
        (rows_of_a_curve(), ["tokens N", "extra memory, MB", "gradients"]),
    ],
    ids=["ratios", "scaling"],
)
def test_pictures_are_the_same_bytes_from_the_same_rows(rows, texts, tmp_path):
    pytest.importorskip("matplotlib")
    report.write_csv(tmp_path / "results.csv", FACTS, rows)
    (path,) = plot.update([tmp_path / "results.csv"])
    first = path.read_text()
    assert path == tmp_path / "results.svg"
    assert all(text in first for text in texts)
    assert "<dc:date>" not in first
    assert plot.draw(tmp_path / "results.csv").read_text() == first
