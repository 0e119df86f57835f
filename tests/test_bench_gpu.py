"""The benchmark of a machine with a GPU: no stage stops another, and a dry run starts all."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.gpu import __main__ as command_line
from bench.gpu import accuracy, process, results, rows, stages
from bench.gpu.device import Device
from bench.gpu.stages import ROOT, Stage
from bench.gpu.variables import forced

NINE_MINUTES = 540


def run(programs, limit=20.0):
    """Outcomes, by name, of stages that are Python programs; {records} is the file of theirs."""
    outcomes = {}
    process.run_stages(
        [Stage(name, limit) for name in programs],
        lambda stage, path: [sys.executable, "-c", programs[stage.name].format(records=path)],
        lambda stage, outcome: outcomes.__setitem__(stage.name, outcome),
    )
    return outcomes


WRITES = "open('{records}', 'a').write('{{\"what\": \"it\", \"ms\": 0.12345678}}\\n')\n"


def test_a_stage_that_fails_does_not_stop_the_others():
    outcomes = run({"bad": WRITES + "raise ValueError('no')", "good": WRITES})
    assert outcomes["bad"].status == "failed"
    assert outcomes["bad"].tail.endswith("ValueError: no\n")
    assert outcomes["good"].status == "ok"
    assert outcomes["good"].tail == ""
    for outcome in outcomes.values():
        assert outcome.records == [{"what": "it", "ms": 0.123457}]


def test_a_stage_that_hangs_does_not_stop_the_others():
    hangs = WRITES + "import time; print('here', flush=True); time.sleep(100)"
    outcomes = run({"hangs": hangs, "good": WRITES}, limit=1.0)
    assert outcomes["hangs"].status == "timed out"
    assert outcomes["hangs"].tail == "here\n"
    assert 1.0 <= outcomes["hangs"].seconds < 10.0
    assert outcomes["good"].status == "ok"
    assert all(len(outcome.records) == 1 for outcome in outcomes.values())


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nothing_of_a_stage_is_left_running(tmp_path):
    started = tmp_path / "pid"
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"open('{started}', 'w').write(str(child.pid))\n"
        "time.sleep(100)"
    )
    run({"hangs": program}, limit=1.0)
    deadline = time.monotonic() + 10
    while is_running(int(started.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(started.read_text()))


def test_a_record_that_was_cut_is_dropped():
    outcomes = run({"cut": WRITES + "open('{records}', 'a').write('{{\"what\"')"})
    assert len(outcomes["cut"].records) == 1


def test_time_that_is_left_over_goes_to_the_next_stage():
    outcomes = run({"first": "", "second": ""}, limit=50.0)
    assert outcomes["first"].limit == 50.0
    assert outcomes["second"].limit == pytest.approx(100.0 - outcomes["first"].seconds)


def test_the_whole_run_takes_nine_minutes_at_most():
    assert sum(stage.limit for stage in stages.STAGES) <= NINE_MINUTES


def test_stages_are_chosen_by_name_and_keep_their_order():
    chosen = stages.select(["linear", "build"], with_wheels=True)
    assert [stage.name for stage in chosen] == ["build", "linear"]
    assert [stage.name for stage in stages.select(None, with_wheels=True)] == list(stages.NAMES)
    assert "wheels" not in [stage.name for stage in stages.select(None, with_wheels=False)]


def test_stages_import_from_the_build_and_then_from_the_wheels(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "given")
    monkeypatch.setattr(process, "SITE", tmp_path)
    monkeypatch.setattr(process, "RIVALS", tmp_path / "absent")
    real, dry = (process.stage_environment(dry_run=dry) for dry in (False, True))
    assert real["PYTHONPATH"] == f"{tmp_path}{os.pathsep}given"
    assert dry["PYTHONPATH"] == "given"


def test_the_file_is_whole_after_each_stage(tmp_path):
    found = results.Results(tmp_path / "new" / "gpu.json", dry_run=False)
    facts = {"what": "facts", "device": "a GPU"}
    copy = {"what": "copy", "bytes": 8, "ms": 1.0, "gb_per_s": 3000.123}
    found.add("ceilings", process.Outcome("ok", 2.0, 30.0, [facts, copy]))
    content = json.loads(found.path.read_text())
    assert content["facts"] == {"device": "a GPU"}
    assert content["stages"]["ceilings"]["records"] == [copy]
    assert found.ok
    found.add("rows", process.Outcome("timed out", 70.0, 70.0, [], "the end"))
    content = json.loads(found.path.read_text())
    assert list(content["stages"]) == ["ceilings", "rows"]
    assert content["stages"]["rows"]["tail"] == "the end"
    assert not found.ok
    tables = found.tables()
    assert "3000" in tables
    assert tables.splitlines()[-1].split() == ["rows", "timed", "out", "70"]


def test_bytes_of_the_row_kernels_are_those_stated():
    for dtype in rows.DTYPES:
        logits, top_k = (
            rows.make_case(kind, 32000, dtype, dry_run=False) for kind in ("logits", "top_k")
        )
        elements = logits.rows * logits.vocab
        assert 0.9 * rows.ELEMENTS < elements <= rows.ELEMENTS
        assert logits.bytes == 3 * dtype.itemsize * elements
        assert top_k.bytes == pytest.approx(2 * dtype.itemsize * elements, rel=0.03)


def test_a_team_is_forced_for_a_while_only():
    with forced(FASTDISTILL_CUDA_CLUSTER=2, FASTDISTILL_CUDA_THREADS=256):
        assert os.environ["FASTDISTILL_CUDA_CLUSTER"] == "2"
        assert os.environ["FASTDISTILL_CUDA_THREADS"] == "256"
    assert not any(name.startswith("FASTDISTILL_CUDA") for name in os.environ)


def test_wrong_is_what_is_far_from_the_truth_and_farther_than_torch():
    nan, bfloat16 = float("nan"), torch.bfloat16
    assert accuracy.is_right((1e-7, 0.029), (1e-7, 0.001), bfloat16)
    assert accuracy.is_right((1e-7, 0.08), (1e-7, 0.05), bfloat16)
    assert not accuracy.is_right((1e-7, 0.08), (1e-7, 0.03), bfloat16)
    assert not accuracy.is_right((0.08, 1e-7), (1e-7, 0.05), bfloat16)
    assert not accuracy.is_right((1e-7, nan), (1e-7, 1.0), bfloat16)


def test_a_dry_run_starts_every_stage(tmp_path):
    wheels, output = tmp_path / "wheels", tmp_path / "gpu.json"
    wheels.mkdir()
    (wheels / "rival-1.0-py3-none-any.whl").touch()
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--wheels", wheels]
    done = subprocess.run(
        [*command, "--output", output], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(output.read_text())
    assert content["dry_run"]
    assert content["facts"]["device"] == "cpu"
    assert list(content["stages"]) == list(stages.NAMES)
    assert all(stage["status"] == "ok" for stage in content["stages"].values())
    kinds = {r["what"] for stage in content["stages"].values() for r in stage["records"]}
    assert kinds == {*results.TABLES, "build", "sweep", "errors"}
    ours = next(r for r in content["stages"]["linear"]["records"] if r["what"] == "linear")
    assert ours["provider"] == "fastdistill"
    assert ours["ms"] > 0
    assert done.stdout.splitlines()[-1] == f"wrote {output}"


def test_only_what_is_asked_for_is_run(tmp_path, capsys):
    output = tmp_path / "gpu.json"
    assert command_line.main(["--dry-run", "--only", "build", "--output", str(output)]) == 0
    assert list(json.loads(output.read_text())["stages"]) == ["build"]
    assert "build  ok" in capsys.readouterr().out


@pytest.mark.cuda
def test_time_and_memory_of_a_run_on_the_gpu():
    device, size = Device("cuda"), 64 << 20
    source = torch.ones(size // 4, device="cuda")
    timing = device.time(source.clone, seconds=0.01, least=3)
    assert timing.runs >= 3
    assert 0.0 < timing.ms_p20 <= timing.ms <= timing.ms_p80 < 100.0
    assert device.peak_megabytes(source.clone) == pytest.approx(size / 1e6)
