"""The command of the suite: its options, its quick form, what it writes and where."""

from __future__ import annotations

import csv
import doctest
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("bench", reason="the benchmark suite is in the repository only")

from bench import __main__ as command
from bench import (
    arguments,
    cases,
    machine,
    memory,
    peers,
    plots,
    processes,
    providers,
    records,
    report,
    settings,
    tables,
    timing,
    traffic,
    worker,
)
from bench.cases import Case

ROOT = Path(__file__).resolve().parent.parent


def test_unknown_filter_lists_the_cases():
    with pytest.raises(ValueError, match=r"no case matches 'relux'.*relu6.*GUIDED"):
        cases.select("relux", quick=False)


def test_broken_filter_is_named():
    with pytest.raises(ValueError, match=r"the filter '\(' is not a regular expression"):
        cases.select("(", quick=False)


def test_filter_finds_a_rule_in_capitals_or_not():
    for pattern in ("gelu/guided", "GELU/GUIDED"):
        assert [case.name for case in cases.select(pattern, quick=True)] == ["gelu/GUIDED"]
    assert cases.finder("RELU/rev")("relu/reverse")


def test_filter_reaches_pairs_outside_the_usual_run():
    assert [case.name for case in cases.select("^mish/rectgrad$", quick=True)] == ["mish/rectgrad"]


def test_a_short_run_writes_everything(tmp_path):
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    arguments = [
        "--quick", "--filter", "relu/GUIDED$", "--sizes", "2^10", "2^14", "--threads", "1",
        "--allocations", "reused", "--without", "idiom+compile", "best+compile",
        "--out", str(out), "--json", str(copy),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads((out / "results.json").read_text())
    assert run == json.loads(copy.read_text())
    fused = [r for r in run["timings"] if r["provider"] == "fused"]
    assert {(r["dtype"], r["elements"]) for r in fused} == {
        (dtype, size) for dtype in ("float32", "bfloat16") for size in (2**10, 2**14)
    }
    skipped = [r for r in run["timings"] if r["provider"] == "idiom+compile"]
    assert {r["skipped"] for r in skipped} == {"left out by --without"}
    with (out / "timings.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == len(run["timings"])
    text = (out / "README.md").read_text()
    for title in ("Wins", "Losses", "Floors that the project set itself", "Method"):
        assert f"## {title}\n" in text
    assert "`fused-triton` has no figure: Triton's kernels run on a GPU" in text
    every = (out / "TABLES.md").read_text()
    assert "* `idiom+compile` on relu/GUIDED: left out by --without" in every
    assert run["machine"]["torch"] == torch.__version__
    assert run["machine"]["peers"] == peers.versions()
    # Each name of the suite is in the record, with a time or with the reason why there is none.
    assert {row["provider"] for row in run["timings"]} == set(providers.NAMES)
    assert all("median_s" in row or row["skipped"] for row in run["timings"])
    assert "skipped: idiom+compile: left out by --without" in done.stdout
    assert "skipped: fused-triton: Triton's kernels run on a GPU" in done.stdout
    for name in ("speedup", "memory"):
        assert f"({name}.png)" in text and f"({name}.svg)" in text
        assert (out / f"{name}.png").is_file() and (out / f"{name}.svg").is_file()


def test_sizes_are_read_as_powers_or_numbers():
    parser = command._parser()
    assert parser.parse_args(["--sizes", "2^4", "100"]).sizes == [16, 100]


def test_an_unknown_filter_ends_the_command_with_a_message(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--filter", "nothing_like_it"])
    assert ended.value.code == 2
    assert "no case matches 'nothing_like_it'" in capsys.readouterr().err


def test_a_provider_that_is_ours_cannot_be_left_out(capsys):
    with pytest.raises(SystemExit):
        command.main(["--without", "fused"])
    assert "invalid choice: 'fused'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_cuda_without_a_device_is_a_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--device", "cuda"])
    assert ended.value.code == 1
    assert "--device cuda: torch sees no CUDA device here, and torch" in capsys.readouterr().err


def test_the_command_of_the_package_is_the_suite(tmp_path):
    words = ["-m", "pyrevgrad", "bench", "--filter", "nothing_like_it"]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m pyrevgrad bench")
    assert "no case matches 'nothing_like_it'; a case is activation/rule" in done.stderr


#: Options, and what is said of each before anything is measured.
REFUSED = (
    (("--threads", "0"), "argument --threads: must be at least 1, got 0"),
    (("--threads", "999"), "--threads 999: this process may run on "),
    (("--sizes", "2^99"), "argument --sizes: 2^99 elements do not fit this machine's memory"),
    (("--sizes", "abc"), "argument --sizes: 'abc' is no number of elements, such as 65536 or"),
    (("--sizes", "8", "2^"), "argument --sizes: '2^' is no number of elements, such as 65536 or"),
    (("--threads", "1", "-2"), "argument --threads: must be at least 1, got -2"),
    (("--out", "{file}"), "argument --out: {file} cannot be written: {file} is no folder"),
    (("--out", "{file}/results"), "cannot be written: {file} is no folder"),
    (("--out", "{other}"), "argument --out: {other}/README.md was not written by the suite"),
    (("--json", "/dev/full"), "argument --json: /dev/full cannot be written: No space left"),
    (("--json", "{folder}"), "argument --json: {folder} is a folder, not a file"),
    (("--json", "{file}/run.json"), "cannot be written: {file} is no folder"),
    (("--out", "{closed}/a/b"), "cannot be written: {closed} lets nobody here write"),
    (("--json", "{closed}/run.json"), "cannot be written: {closed} lets nobody here write"),
)


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=str)
def test_what_would_fail_after_measuring_is_refused_before(
    words, message, tmp_path, capsys, monkeypatch
):
    places = {name: tmp_path / name for name in ("file", "folder", "closed")}
    places["file"].write_text("kept")
    places["folder"].mkdir()
    places["closed"].mkdir()
    places["other"] = tmp_path / "other"
    places["other"].mkdir()
    (places["other"] / "README.md").write_text("# A project of its own")
    # To root every folder is open.
    monkeypatch.setattr(arguments.os, "access", lambda path, _: path != places["closed"])
    monkeypatch.setattr(command, "_run_cpu", lambda *_: pytest.fail("it began to measure"))
    with pytest.raises(SystemExit) as ended:
        command.main([word.format(**places) for word in words])
    assert ended.value.code == 2
    assert message.format(**places) in capsys.readouterr().err
    assert places["file"].read_text() == "kept" and not [*places["folder"].iterdir()]


def test_a_folder_with_the_suite_s_own_page_is_taken_again(tmp_path):
    (tmp_path / "README.md").write_text("# What a modified backward costs\n")
    assert command._parser().parse_args(["--out", str(tmp_path)]).out == tmp_path


def test_another_checkout_s_package_is_refused_before_measuring(tmp_path, capsys, monkeypatch):
    package = tmp_path / "pyrevgrad"
    package.mkdir()
    (tmp_path / "csrc").mkdir()
    monkeypatch.setattr(machine.pyrevgrad, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(command, "_run_cpu", lambda *_: pytest.fail("it began to measure"))
    with pytest.raises(SystemExit) as ended:
        command.main(["--quick"])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert f"the suite is that of {machine.HERE}, and pyrevgrad that of {package}" in said
    with pytest.raises(SystemExit, match="the suite is that of"):
        records.Begun("training", [])
    (tmp_path / "csrc").rmdir()  # installed, not a checkout
    assert machine.two_checkouts() is None


@pytest.mark.skipif(os.name != "posix", reason="signals of a terminal")
@pytest.mark.parametrize("which", (signal.SIGINT, signal.SIGTERM))
def test_an_interruption_is_a_sentence_and_the_status_of_one(which, capsys, monkeypatch):
    monkeypatch.setattr(command, "_run_cpu", lambda *_: os.kill(os.getpid(), which))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert command.main(["--quick", "--device", "cpu"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted: what was measured is not written\n"


def test_a_measuring_process_ends_with_the_command(monkeypatch):
    code = "import time; print('{\"kind\": 1}', flush=True); time.sleep(60)"
    monkeypatch.setattr(processes, "_command", lambda: [sys.executable, "-c", code])
    started = []

    class Interrupted(processes.Progress):
        def row(self, row):
            started.append(row)
            raise KeyboardInterrupt

    told = {"cases": [], "kernel_sizes": []}
    with pytest.raises(KeyboardInterrupt):
        processes.measure(told, "reused", "", Interrupted())
    assert started == [{"kind": 1}]


def test_the_process_of_a_figure_of_memory_says_what_it_takes():
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "activation/rule" in done.stdout


def test_columns_of_a_table_name_their_unit_and_what_is_over_what(tmp_path):
    report.write_csv(tmp_path / "scaling.csv", [{"kind": "fit", "fixed": 1.0, "each": 2.0}])
    report.write_csv(tmp_path / "host.csv", [{"median_s": 1.0, "ratio": 2.0, "ratio_q1": 1.0}])
    heads = [(tmp_path / f"{name}.csv").read_text().splitlines()[0] for name in ("scaling", "host")]
    assert heads == [
        "kind,fixed_s,seconds_per_element", "median_s,time_over_plain,time_over_plain_q1"
    ]  # fmt: skip


def test_the_usual_folder_is_tried_before_measuring_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench-results").write_text("a file")
    monkeypatch.setattr(machine, "checkout", lambda: None)
    monkeypatch.setattr(command, "_run_cpu", lambda *_: pytest.fail("it began to measure"))
    with pytest.raises(SystemExit):
        command.main(["--quick", "--device", "cpu"])
    assert "bench-results is no folder" in capsys.readouterr().err


def test_places_that_are_not_there_yet_are_taken_and_not_made(tmp_path):
    found = command._parser().parse_args(
        ["--out", str(tmp_path / "a/b"), "--json", str(tmp_path / "c/run.json")]
    )
    assert (found.out, found.json) == (tmp_path / "a/b", tmp_path / "c/run.json")
    assert not [*tmp_path.iterdir()]


def _options(*words):
    return command._parser().parse_args(words)


def test_the_whole_suite_makes_the_record_and_a_part_of_it_leaves_it_alone(monkeypatch, tmp_path):
    results = ROOT / "bench" / "results" / "abacus"
    assert report.folder_of(_options(), "abacus") == (results, ROOT / "bench" / "README.md")
    for words in (["--quick"], ["--filter", "relu"], ["--sizes", "8"], ["--without", "idiom"]):
        folder = ROOT / "out" / "bench" / "abacus"
        assert report.folder_of(_options(*words), "abacus") == (folder, folder / "README.md")
    out = report.folder_of(_options("--out", str(tmp_path)), "abacus")
    assert out == (tmp_path, tmp_path / "README.md")
    monkeypatch.setattr(machine, "HERE", tmp_path / "pyrevgrad" / "bench")
    folder, path = report.folder_of(_options(), "abacus")
    assert (folder.as_posix(), path.name) == ("bench-results/abacus", "README.md")
    assert machine._git("rev-parse", "HEAD") is None


def test_the_floors_are_judged_on_the_sizes_that_they_name():
    told = command.settings_of(_options("--threads", "1", "2"))
    assert {2**10, 2**16, 2**20, 2**24} <= set(told["sizes"]) and told["threads"] == [1, 2]
    assert {2**20, 2**24} <= set(told["kernel_sizes"]) and {2**10, 2**20} <= set(told["few_sizes"])
    assert told["dtypes"] == ["float32", "bfloat16"]
    # The compiled idiom is an opponent of the guided cases in both dtypes.
    assert ["relu/guided_scaled", "bfloat16", 1] in told["compile"]


def test_the_quick_form_has_a_figure_for_every_provider():
    told = command.settings_of(_options("--quick"))
    torch.set_num_threads(told["threads"][0])
    chosen = set()
    for case in (Case(*name.split("/")) for name in told["cases"]):
        for dtype in told["dtypes"]:
            offered = worker.offered(case, dtype, told)
            for elements in told["few_sizes" if case.at_few_sizes else "sizes"]:
                timed = worker.at_size(offered, elements, told)
                chosen |= {p.name for p in timed if isinstance(p, providers.Provider)}
    wanted = set(providers.NAMES) - {"fused-triton"}
    absent = {n for n, m in peers.PACKAGES.items() if importlib.util.find_spec(m) is None}
    absent |= set() if memory.pyrevgrad.backends._native else {"fused", "fused+compile"}
    assert chosen - set(providers.STAND_IN) == wanted - absent


def test_the_quick_form_leaves_out_what_tells_least():
    told = command.settings_of(_options("--quick", "--threads", "1", "2"))
    assert told["computing_sizes"] == []
    second = settings.again(told)
    assert second["threads"] == [1] and second["compile"] == [] and told["compile"]


def test_a_run_says_what_it_does_from_its_start(monkeypatch, capsys):
    said = {"kind": "said", "text": "compiling relu/GUIDED"}
    row = {"kind": "kernel", "kernel": "relu/GUIDED forward"}
    lines = "; ".join(f"print({json.dumps(one)!r})" for one in (said, row))
    monkeypatch.setattr(processes, "_command", lambda: [sys.executable, "-c", lines])
    told = {"cases": ["relu/GUIDED"], "kernel_sizes": []}
    rows = processes.measure(told, "reused", "", processes.Progress())
    assert rows == [row]
    printed = capsys.readouterr().out
    assert "reused allocations: 1 cases" in printed and "compiling relu/GUIDED" in printed


@pytest.mark.parametrize("module", [cases, machine, memory, plots, tables, timing, traffic])
def test_examples_of_the_suite_run(module):
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0 and result.failed == 0


def test_pytest_benchmark_runs_the_cases(tmp_path):
    pytest.importorskip("pytest_benchmark")
    record = tmp_path / "record.json"
    chosen = "relu/DECONVNET and 1024 and (fused or idiom)"
    words = ["bench", "-q", "-p", "no:cacheprovider", "-k", chosen, f"--benchmark-json={record}"]
    # One process of several that run tests takes no times.
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=alone,
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(record.read_text())["benchmarks"]
    assert {row["params"]["name"] for row in found} >= {"idiom"}
    assert {row["group"] for row in found} == {"relu/DECONVNET 1024"}
    assert all(row["extra_info"]["threads"] for row in found)
    tool = ["-m", "pytest_benchmark", "compare", str(record), "--group-by=group", "--sort=mean"]
    compared = subprocess.run([sys.executable, *tool], capture_output=True, text=True)
    assert compared.returncode == 0 and "relu/DECONVNET 1024" in compared.stdout, compared.stderr
