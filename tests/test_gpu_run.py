"""What `make gpu` does around its device: its survey, its verdicts, its record, its figures' form.

Reads .ci/gpu.py and bench/gpu.py, and drives the measuring code on the CPU with a clock of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / ".ci" / "gpu.py").is_file():
    pytest.skip("make gpu is in the repository only", allow_module_level=True)
sys.path.append(str(ROOT))

import pyrevgrad  # noqa: E402
from bench import cuda_page, gpu, providers, records  # noqa: E402
from pyrevgrad import backends  # noqa: E402

needs_native = pytest.mark.skipif(backends._native is None, reason="no native library")


@pytest.fixture(scope="module")
def driver():
    spec = importlib.util.spec_from_file_location("gpu_driver", ROOT / ".ci" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_ends_with_a_sentence_and_writes_nothing():
    command = [sys.executable, str(ROOT / ".ci" / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torch sees no CUDA device here; `make test` proves what can be proven" in done.stderr
    command = [sys.executable, "-m", "bench.gpu", "nowhere.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "there is no CUDA device" in done.stderr
    assert not (ROOT / "nowhere.json").exists()


def test_the_sanitizer_watches_tests_that_exist(driver):
    text = (ROOT / "tests" / "test_cuda.py").read_text()
    for part in driver.WATCHED.split(" or "):
        assert re.search(rf"def test_\w*{part}", text), part


@pytest.mark.parametrize(
    ("text", "status", "passed", "errors"),
    [
        ("12 passed in 3.10s", 0, True, 0),
        ("==== 1 failed, 11 passed in 3.10s ====", 1, False, 0),
        ("12 skipped in 0.10s", 0, False, 0),
        ("12 passed in 3.1s\n========= ERROR SUMMARY: 0 errors", 0, True, 0),
        ("12 passed in 3.1s\n========= ERROR SUMMARY: 2 errors", 9, False, 2),
        ("12 passed in 3.1s\nRACECHECK SUMMARY: 1 hazard displayed (1 error)", 0, False, 1),
        ("Segmentation fault", -11, False, 0),
    ],
)
def test_a_run_passes_only_if_some_test_ran_and_nothing_was_found(
    driver, text, status, passed, errors
):
    row = driver.outcome(text, status)
    assert (row["passed"], row["errors"]) == (passed, errors)


FOUND = {"devices": ["NVIDIA X"], "torch": "2.13.0", "cuda": "13.0", "capability": [9, 0]}
PASSED = {"summary": "3 passed in 1s", "passed": True, "errors": 0}
FIGURES = {"kernels": [], "missed": []}


def test_what_is_stopped_in_time_leaves_what_it_said_and_its_children_go_with_it(driver, tmp_path):
    assert driver.outcome("12 passed in 3.1s", None) == {
        "summary": "stopped: the minutes of the command were over", "passed": False, "errors": 0,
    }  # fmt: skip
    clock = driver.Clock(0.05, [tmp_path])
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    text, status = clock.run([sys.executable, "-c", code])
    assert status is None and text in (tmp_path / "gpu.log").read_text()
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(text), 0)
            time.sleep(0.05)
    # Nothing is left for what comes after it.
    assert clock.run([sys.executable, "-c", "print(1)"])[1] is None
    text, status = driver.Clock(None, [tmp_path]).run([sys.executable, "-c", "print(1); exit(3)"])
    assert (text, status) == ("1\n", 3)


def test_a_copy_without_its_history_is_told_the_commit(driver, monkeypatch):
    monkeypatch.setattr(driver, "said", lambda *_: None)
    machine = driver.machine_of(FOUND, "abc")
    assert machine["commit"] == "abc" and machine["dirty"] is None
    monkeypatch.setattr(driver, "said", lambda *words: "def" if "rev-parse" in words else "")
    assert driver.machine_of(FOUND, "abc")["commit"] == "def"


def test_the_record_names_device_driver_versions_and_commit(driver):
    parts = {name: {"found": PASSED} for name in driver.PARTS} | {"figures": {"found": FIGURES}}
    machine = driver.machine_of(FOUND, None)
    run = driver.record(machine, parts)
    assert {"devices", "driver", "torch", "python", "commit", "dirty", "nvcc"} <= set(run)
    assert driver.failures(run) == []
    run["sanitizer"]["memcheck"] = {
        "summary": "compute-sanitizer is not installed",
        "passed": False,
    }
    assert driver.failures(run) == ["memcheck: compute-sanitizer is not installed"]
    failed = {"found": {"summary": "1 failed", "passed": False, "errors": 0}}
    without = driver.record(machine, {**parts, "triton": failed, "figures": {"found": None}})
    assert driver.failures(without) == [
        "the tests of triton: 1 failed", "the benchmark failed, or the tests before it",
    ]  # fmt: skip
    part = driver.record(machine, {**parts, "figures": {"found": {"kernels": []}}})
    assert driver.failures(part) == ["the benchmark stopped before its end"]
    unproven = driver.record(machine, {**parts, "figures": {"found": {**FIGURES, "proven": False}}})
    assert driver.failures(unproven) == ["the figures are of kernels whose tests have not passed"]
    assert "the tests of native: has not run" in driver.failures(driver.record(machine, {}))
    assert driver.folder_of("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


@pytest.fixture
def rehearsal(driver, monkeypatch, tmp_path):
    """The driver with all but its bookkeeping replaced: runs it, and knows what it ran."""
    ran, commits = [], ["one"]
    for name, value in {
        "ROOT": tmp_path, "WORK": tmp_path / "build", "survey": lambda: FOUND,
        "build": lambda *_: None, "measured": lambda *_: dict(FIGURES),
        "tests": lambda _, clock, file, *before, **options: ran.append(file) or PASSED,
        "said": lambda *command: commits[-1] if "rev-parse" in command else None,
    }.items():  # fmt: skip
        monkeypatch.setattr(driver, name, value)
    monkeypatch.setattr(driver, "sanitizer", lambda: "/bin/compute-sanitizer")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu", *map(str, arguments)])
        return driver.main()

    run.ran, run.commits = ran, commits
    run.written = tmp_path / "bench" / "results" / "nvidia-x" / "gpu.json"
    return run


def test_parts_are_put_together_once_all_have_run_for_one_commit(driver, rehearsal):
    for name in ("native", *driver.PARTS):
        assert not rehearsal.written.exists()
        assert rehearsal("--only", name) == 0
        rehearsal.commits.append("two")
    assert rehearsal.written.exists()
    # Each matrix in two runs, the large tensors by themselves, and both tools.
    assert rehearsal.ran.count("test_cuda.py") == 6
    assert rehearsal.ran.count("test_triton_gpu.py") == 2


def test_what_several_commands_left_is_put_together_where_there_is_no_device(
    driver, rehearsal, tmp_path, capsys
):
    first, second = tmp_path / "first", tmp_path / "second"
    assert rehearsal("--only", "native", "figures", "--out", first) == 0
    there = json.loads((first / "gpu.json").read_text())
    assert there["proven"] and there["tests"]["triton"]["summary"] == "has not run"
    assert "still to run: --only triton" in capsys.readouterr().out
    driver.shutil.rmtree(tmp_path / "build")
    assert rehearsal("--only", "triton", "memcheck", "racecheck", "--out", second) == 0
    driver.shutil.rmtree(tmp_path / "build")
    assert not rehearsal.written.exists()
    assert len(list(first.iterdir())) + len(list(second.iterdir())) <= 9
    assert rehearsal("--assemble", first, second) == 0
    assert json.loads(rehearsal.written.read_text())["sanitizer"]["racecheck"] == PASSED
    rehearsal.commits.append("two")
    rehearsal("--only", "triton", "--out", second)
    with pytest.raises(SystemExit, match="the parts are of 2 different commit"):
        rehearsal("--assemble", first, second)


def test_figures_are_proven_by_tests_of_the_same_commit_on_another_machine(
    driver, rehearsal, tmp_path
):
    first, second = tmp_path / "first", tmp_path / "second"
    assert rehearsal("--only", "figures", "--anyway", "--out", first) == 1
    assert json.loads((first / "gpu.json").read_text())["proven"] is False
    driver.shutil.rmtree(tmp_path / "build")
    rehearsal("--only", "native", "triton", "memcheck", "racecheck", "--out", second)
    assert rehearsal("--assemble", first, second) == 0
    assert json.loads(rehearsal.written.read_text())["proven"] is True


def test_packages_that_the_caller_brings_are_found_in_what_is_run(driver, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "brought")
    path = driver.environment(FOUND)["PYTHONPATH"].split(driver.os.pathsep)
    assert path[0] == str(driver.PACKAGE) and path[-1] == "brought"


def test_no_figure_is_taken_before_the_tests_unless_asked_for(rehearsal, tmp_path):
    assert rehearsal("--only", "figures", "--out", tmp_path / "out") == 1
    assert "kernels" not in json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert rehearsal("--only", "figures", "--anyway", "--out", tmp_path / "out") == 1
    assert json.loads((tmp_path / "out" / "gpu.json").read_text())["proven"] is False


def test_the_build_is_for_the_device_that_is_there(driver):
    variables = driver.environment({"capability": [8, 6]})
    assert int(variables["MAX_JOBS"]) >= 1
    assert variables["PYREVGRAD_CUDA_ARCHITECTURES"] == "sm_86"
    assert variables["PYREVGRAD_CUDA"] == variables["PYREVGRAD_REQUIRE_NATIVE"] == "1"


class Ticks:
    """A timer that runs the step and says what it is told."""

    def __init__(self):
        self.runs = 0

    def __call__(self, step):
        self.runs += 1
        step()
        return 0.5


@needs_native
@pytest.mark.filterwarnings("ignore")
def test_the_figures_have_a_row_for_every_kernel_and_opponent(
    driver, monkeypatch, tmp_path, capsys
):
    for name in providers.COMPILED:
        skipped = lambda *_, name=name: providers.Skipped(name, "takes a compiler")  # noqa: E731
        monkeypatch.setitem(providers._MAKERS, name, skipped)
    monkeypatch.setattr(gpu, "host_rows", lambda device, wait: [])
    run = gpu.measure(torch.device("cpu"), Ticks(), lambda: None, 1 << 12, 2)
    kernels = {(row["kernel"], row["dtype"]) for row in run["kernels"]}
    assert ("relu/reverse backward", "bfloat16") in kernels
    assert ("gelu/reverse forward", "float32") in kernels
    for row in run["kernels"]:
        # Equal times: the share is the ratio of the bytes moved.
        copied = 2 * {"bfloat16": 2, "float32": 4}[row["dtype"]]
        assert row["share"] == pytest.approx(row["bytes_per_element"] / copied)
    timed = [row for row in run["pairs"] if "median_s" in row]
    opponents = {(row["case"], row["provider"]) for row in timed}
    assert {("relu/GUIDED", "idiom"), ("relu/reverse", "plain")} <= opponents
    assert all(row["speedup"] == 1.0 for row in timed)
    about = {"device": "Abacus 9", "build": "cubins", "date": "2026-01-02"}
    versions = {"torch": "2.13.0", "commit": None}
    text = cuda_page.cuda_page({**run, **about, "command": "bench", "machine": versions})
    assert "# What a modified backward costs on Abacus 9" in text
    assert (
        "| relu/GUIDED | fused-triton | float32 | 2¹⁰ | – | Triton's kernels run on a GPU" in text
    )
    assert "* relu/GUIDED bfloat16: 1.000 times faster than idiom, target 2.3" in text
    # The record of `make gpu` is made into the same page where there is no device.
    parts = {"figures": {"found": {**run, **about, "proven": False}}}
    results = Path(__file__).resolve().parent.parent / "bench" / "results"
    folder, project = tmp_path / "bench" / "results" / "abacus-9", tmp_path / "bench" / "README.md"
    shutil.copytree(results, folder.parent)
    file = driver.write(driver.record(driver.machine_of(FOUND, None), parts), folder)
    monkeypatch.setattr(sys, "argv", ["cuda_page", str(file)])
    assert cuda_page.main() == 0
    assert "[abacus-9](results/abacus-9/README.md)" in project.read_text()
    for place, made in records.project_pages(folder.parent, project).items():
        assert place.read_text() == made
    text = (folder / "README.md").read_text()
    assert "native: has not run — FAILED" in text and "have not passed" in text
    assert (folder / "kernels.png").is_file() or "no picture" in capsys.readouterr().out
    left_out = {row["provider"]: row for row in run["pairs"] if "median_s" not in row}
    assert all(row["skipped"] for row in left_out.values()) and "fused-triton" in left_out
    assert "relu/GUIDED bfloat16: 1.000 times faster than idiom, target 2.3" in run["missed"]
    assert not [text for text in run["missed"] if "plain" in text]
    # A target that nothing was measured for is not met.
    assert "relu/GUIDED float32: no ratio to idiom+compile: takes a compiler" in run["missed"]
    assert run["without_triton"] and {row["backend"] for row in run["kernels"]} == {"native"}
    assert all(row["share_low"] == row["share"] == row["share_high"] for row in run["kernels"])
    idiom = next(row for row in timed if row["provider"] == "idiom" and row["dtype"] == "float32"
                 and row["case"] == "relu/GUIDED")  # fmt: skip
    # Read x, write y; twice a comparison (5 bytes) and a product with its booleans (9 bytes).
    assert idiom["bytes_per_element"] == 8 + 2 * (5 + 9)


def test_what_is_measured_is_left_before_the_end(monkeypatch):
    kept = []
    for name in ("host_rows", "pair_rows", "kernel_rows"):
        monkeypatch.setattr(gpu, name, lambda *_: [])
    run = gpu.measure(None, None, None, dtypes=("a", "b"), keep=lambda run: kept.append(dict(run)))
    assert len(kept) == 5 and all("missed" not in part for part in kept) and run["missed"] == []


@needs_native
def test_a_kernel_whose_result_is_wrong_has_no_bandwidth(monkeypatch):
    kind = type(backends.native())
    backward = kind.backward
    monkeypatch.setattr(kind, "backward", lambda *given: backward(*given) * 2)
    rows = gpu.kernel_rows("float32", 1 << 12, torch.device("cpu"), Ticks(), 2)
    told = {row["kernel"]: row.get("refused") for row in rows}
    assert not any(said for name, said in told.items() if name.endswith("forward"))
    name = "relu/guided_scaled backward"
    said = f"the kernel {name} gives a wrong gradient of float32 by native"
    assert told[name] == said
    assert said in gpu.missed({"kernels": rows, "pairs": [], "host": []})
    assert said in cuda_page._kernel(rows[[*told].index(name)])


def test_figures_are_taken_without_a_backend_named(monkeypatch):
    """Compiled code would be another than a user's: it calls the backend that is named."""
    named = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(pyrevgrad, "relu", lambda _: named.append(backends.forced()))
    for name in ("DeviceTimer", "warmed", "clocks"):
        monkeypatch.setattr(gpu, name, lambda *_: types.SimpleNamespace(late=0))
    monkeypatch.setattr(gpu, "describe", lambda _: {})
    monkeypatch.setattr(gpu, "measure", lambda *_, **__: named.append(backends.forced()) or {})
    gpu.on_this_device(True)
    assert named == ["native", None]


def test_a_run_without_a_time_of_ours_is_missed():
    rows = [
        {"case": "relu/GUIDED", "dtype": "float32", "provider": name, "target": target, **left}
        for name, target, left in (
            ("fused", None, {"skipped": "the reference backend would serve it"}),
            ("plain", 1.0, {"median_s": 1.0}),
            ("copy", None, {"median_s": 1.0}),
        )
    ]
    assert gpu.missed({"kernels": [], "pairs": rows, "host": []}) == [
        "relu/GUIDED float32: no time of ours: the reference backend would serve it",
        "relu/GUIDED float32: no ratio to plain: ours has no time",
    ]


@pytest.mark.parametrize(
    ("in_time", "wanted", "cycles", "late"),
    [
        ([True], 1.0, 1, 0),
        ([False, True], 2.0, 1, 0),  # the first may have been compiled
        ([False, False, True], 3.0, 2, 0),
        ([False] * 4, 4.0, 8, 1),
    ],
)
def test_a_step_that_the_device_waited_for_is_timed_again(in_time, wanted, cycles, late):
    timer = gpu.DeviceTimer.__new__(gpu.DeviceTimer)
    timer._cycles, timer.late, turns = 1, 0, list(enumerate(in_time, 1))
    timer._once = lambda step: tuple(map(step, turns.pop(0)))
    assert timer(lambda value: value) == wanted
    assert (timer._cycles, timer.late) == (cycles, late) and not turns


def test_host_rows_compare_with_relu():
    rows = gpu.host_rows(torch.device("cpu"), lambda: None, calls=3)
    assert [row["case"] for row in rows] == ["F.relu", "relu/GUIDED", "relu/reverse"]
    assert rows[0]["times_relu"] == 1.0 and all(row["median_s"] > 0 for row in rows)
