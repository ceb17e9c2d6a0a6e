"""The benchmark suite tells the truth: its statistics, its gate, its byte counts, its page."""

from __future__ import annotations

import csv
import doctest
import importlib.metadata
import importlib.util
import json
import os
import random
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmark suite is in the repository only", allow_module_level=True)
# At the end of the path: the installed package is what is measured, never the checkout.
sys.path.append(str(ROOT))

from bench import __main__ as command  # noqa: E402
from bench import (  # noqa: E402
    cases,
    kernels,
    machine,
    memory,
    networks,
    peers,
    plots,
    providers,
    report,
    sections,
    tables,
    targets,
    timing,
    traffic,
)
from bench.cases import Case  # noqa: E402
from bench.timing import Effort, Measured  # noqa: E402


class Clock:
    """A clock that only the steps of a test move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.speed = 1.0

    def __call__(self) -> float:
        return self.now

    def step(self, seconds: float, log: list[str] | None = None, name: str = ""):
        def run() -> None:
            self.now += seconds * self.speed
            if log is not None:
                log.append(name)

        return run


EFFORT = Effort(seconds=1.0, least=5, most=20, sample=0.01)


def test_median_and_quartiles_are_those_of_the_textbook():
    summary = timing.summarise([7.0, 1.0, 3.0, 5.0, 9.0])
    assert (summary.q1, summary.median, summary.q3, summary.runs) == (3.0, 5.0, 7.0, 5)


def test_one_value_is_its_own_quartiles():
    assert timing.summarise([2.0]) == timing.Summary(2.0, 2.0, 2.0, 1)


def test_no_values_are_an_error():
    with pytest.raises(ValueError, match="no values to summarise"):
        timing.summarise([])


def test_ratio_is_paired_within_rounds():
    slow = Measured((2.0, 20.0, 200.0), 1, 0.0)
    quick = Measured((1.0, 10.0, 100.0), 1, 0.0)
    ratio = timing.paired_ratio(slow, quick)
    assert ratio == timing.Summary(2.0, 2.0, 2.0, 3)


def test_ratio_leaves_out_rounds_without_both():
    slow = Measured((3.0, None, None), 1, 0.0)
    quick = Measured((1.0, 50.0, None), 1, 0.0)
    assert timing.paired_ratio(slow, quick) == timing.Summary(3.0, 3.0, 3.0, 1)
    assert timing.paired_ratio(slow, Measured((None, None, None), 1, 0.0)) is None


def test_a_machine_that_changes_speed_does_not_change_the_ratio():
    clock, generator = Clock(), random.Random(1)
    slow_step, quick_step = clock.step(0.03), clock.step(0.01)
    calls = 0

    def with_drift(step):
        def run() -> None:
            nonlocal calls
            calls += 1
            # the machine gets slower all the time, ten times over the run, and jitters by 1 %
            clock.speed = (1 + calls / 10) * generator.uniform(0.99, 1.01)
            step()

        return run

    steps = {"slow": with_drift(slow_step), "quick": with_drift(quick_step)}
    measured = timing.interleave(steps, EFFORT, clock=clock)
    ratio = timing.paired_ratio(measured["slow"], measured["quick"])
    seconds = measured["slow"].samples
    assert seconds[-1] > 2 * seconds[0]
    assert ratio.median == pytest.approx(3.0, rel=0.05)


def test_repetitions_fill_a_sample():
    clock = Clock()
    measured = timing.interleave({"tiny": clock.step(0.001)}, EFFORT, clock=clock)["tiny"]
    assert measured.repetitions == 10
    assert measured.seconds.median == pytest.approx(0.001)


def test_one_interrupted_call_does_not_spoil_the_calibration():
    clock, durations = Clock(), iter([0.5, 0.001, 0.001, 0.001, 0.001])

    def step() -> None:
        clock.now += next(durations)

    assert timing.calibrate(step, 0.05, clock) == (50, pytest.approx(0.05))


def test_every_round_runs_every_step_once_in_a_changing_order():
    clock, log = Clock(), []
    steps = {name: clock.step(0.02, log, name) for name in "abc"}
    timing.interleave(steps, EFFORT, clock=clock)
    rounds = len(log[15:]) // 3
    orders = ["".join(log[15 + 3 * i : 18 + 3 * i]) for i in range(rounds)]
    assert {"".join(sorted(order)) for order in orders} == {"abc"}
    assert len(set(orders)) > 2


def test_a_slow_step_sits_out_rounds_but_runs_the_least_number():
    costs = {"a": 0.01, "b": 0.01, "slow": 1.0}
    rounds, strides = timing.plan_rounds(costs, EFFORT)
    runs = len(range(0, rounds, strides["slow"]))
    assert strides["a"] == strides["b"] == 1
    assert EFFORT.least <= runs < rounds <= EFFORT.most


def test_byte_counts_are_those_of_the_issue():
    guided, reverse = Case("relu", "guided_scaled"), Case("relu", "reverse")
    assert traffic.fused_forward(guided, "float32") == 8.125
    assert traffic.fused_backward(guided, "float32") == 8.125
    assert traffic.ceiling("idiom", reverse, "float32") == pytest.approx(1.72, abs=0.005)
    assert traffic.ceiling("plain", guided, "bfloat16") == pytest.approx(10 / 8.25)
    assert traffic.ceiling("reference", guided, "float32") is None
    assert traffic.fused_backward(Case("silu", "STRAIGHT_THROUGH"), "float32") == 0


def test_idiom_casts_its_booleans_as_the_byte_count_says():
    x, g = torch.randn(64), torch.randn(64)
    with torch.profiler.profile(record_shapes=True) as profile:
        g * (x > 0) * (g > 0)
    # The comparisons cast their 0, too: that copy has no dimensions.
    events = [e for e in profile.events() if e.input_shapes and e.input_shapes[0] == [64]]
    assert [e.name for e in events].count("aten::copy_") == 2


#: Which of relu's cases the other libraries have.
APPLIES = {
    "captum": {"GUIDED", "guided_slope", "guided_product", "DECONVNET"},
    "zennit": {"GUIDED", "guided_slope", "guided_product", "DECONVNET"},
    "grad-cam": {"GUIDED", "guided_slope", "guided_product"},
    "pytorch-revgrad": {"reverse"},
    "numpy": {"GUIDED", "reverse"},
    "fused-triton": set(),
}


@pytest.mark.parametrize("rule", list(cases.RULES))
@pytest.mark.parametrize("name", [name for name in providers.NAMES if name != "idiom+compile"])
def test_every_provider_passes_its_gate_on_relu_or_says_why_it_does_not_run(name, rule):
    case = Case("relu", rule)
    x, g = providers.tensors(1000, torch.float32)
    without = {other: "not asked for" for other in providers.NAMES if other != name}
    made = providers.build(case, torch.float32, without)
    (provider,) = [provider for provider in made if provider.name == name]
    if isinstance(provider, providers.Skipped):
        applies = rule in APPLIES.get(name, cases.RULES)
        absent = name in peers.PACKAGES and importlib.util.find_spec(peers.PACKAGES[name]) is None
        unwritten = name in ("idiom", "eager-best")
        unbuilt = name == "fused" and memory.pyrevgrad.backends._native is None
        assert not applies or absent or unwritten or unbuilt, provider.reason
        assert len(provider.reason) > 10
        return
    assert rule in APPLIES.get(name, cases.RULES)
    providers.check(provider, case, x, g, providers.expected(case, x, g)[name])


@pytest.mark.parametrize("case", [Case("relu", "GUIDED"), Case("tanh", "reverse")])
def test_no_provider_changes_the_gradients_that_come_after_it(case):
    x, g = providers.tensors(1000, torch.float32)
    without = {"idiom+compile": "a compilation takes too long for a test"}
    passed, left_out = providers.gated(providers.build(case, x.dtype, without), case, x, g)
    assert not [name for name, row in left_out.items() if "refused" in row]
    for provider in passed.values():
        for _ in range(3):
            provider.step(x, g)
    (gx,) = torch.autograd.grad(F.relu(x), x, g)
    assert torch.equal(gx, g * (x > 0))


def test_gate_refuses_a_provider_that_leaves_a_hook():
    case = Case("relu", "GUIDED")
    x, g = providers.tensors(1000, torch.float32)
    wanted = providers.expected(case, x, g)["fused"]

    def step(x, g):
        x.register_hook(lambda gx: None)
        return wanted

    with pytest.raises(providers.GateError, match="left a hook on its input"):
        providers.check(_wrong(step), case, x, g, wanted)
    assert not x._backward_hooks


def test_a_peer_that_is_not_installed_is_named_with_the_cure(monkeypatch):
    monkeypatch.setitem(peers.PACKAGES, "captum", "a_package_that_is_nowhere")
    made = {p.name: p for p in providers.build(Case("relu", "GUIDED"), torch.float32)}
    assert made["captum"].reason.startswith("captum is not installed: `pip install --no-deps")


def test_a_peer_that_does_not_load_is_named_with_its_error(monkeypatch):
    def broken(case, dtype):
        raise OSError("no such library")

    monkeypatch.setitem(providers._MAKERS, "zennit", providers._peer("zennit", broken))
    made = {p.name: p for p in providers.build(Case("relu", "GUIDED"), torch.float32)}
    assert made["zennit"].reason == "it did not load: OSError: no such library"


def test_ours_that_raises_is_refused_and_not_skipped():
    def broken(x, g):
        raise RuntimeError("no kernel")

    made = [providers.Provider(name, broken) for name in ("fused", "captum")]
    x, g = providers.tensors(100, torch.float32)
    passed, left_out = providers.gated(made, Case("relu", "GUIDED"), x, g)
    reason = "it raised RuntimeError: no kernel"
    assert not passed
    assert left_out == {"fused": {"refused": reason}, "captum": {"skipped": reason}}


def test_versions_are_those_of_the_registry_names():
    assert set(peers.versions()) == set(peers.PACKAGES)
    for name, version in peers.versions().items():
        if version is not None:
            assert version == importlib.metadata.version(name)


def test_packages_whose_init_is_left_out_stay_importable():
    if importlib.util.find_spec("zennit") is None:
        pytest.skip("zennit is not installed")
    code = (
        "import sys; from bench import peers; peers._zennit(); "
        "print([name for name in sys.modules if name.startswith('zennit')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("rule", [rule for rule in cases.RULES if rule != "EXACT"])
@pytest.mark.parametrize("activation", ["relu", "silu", "tanh", "leaky_relu"])
def test_idioms_agree_with_the_reference(activation, rule):
    case = Case(activation, rule)
    x, g = providers.tensors(1000, torch.float32)
    wanted = providers.expected(case, x, g)
    others = [name for name in providers.NAMES if name not in ("idiom", "eager-best")]
    idle = dict.fromkeys(others, "not an idiom")
    for provider in providers.build(case, torch.float32, idle):
        if isinstance(provider, providers.Provider):
            providers.check(provider, case, x, g, wanted[provider.name])


def _wrong(step):
    return providers.Provider("wrong", step)


def test_gate_refuses_a_plain_gradient_under_a_modified_rule():
    case = Case("relu", "GUIDED")
    x, g = providers.tensors(1000, torch.float32)

    def step(x, g):
        y = F.relu(x)
        return y, torch.autograd.grad(y, x, g)[0]

    with pytest.raises(providers.GateError, match="wrong gives a wrong gradient on relu/GUIDED"):
        providers.check(_wrong(step), case, x, g, providers.expected(case, x, g)["fused"])


def test_gate_refuses_a_wrong_value():
    case = Case("relu", "GUIDED")
    x, g = providers.tensors(1000, torch.float32)
    y, gx = providers.expected(case, x, g)["fused"]
    with pytest.raises(providers.GateError, match="wrong gives a wrong value on relu/GUIDED"):
        providers.check(_wrong(lambda x, g: (y + 0.01, gx)), case, x, g, (y, gx))


def test_gate_refuses_another_dtype():
    case = Case("relu", "GUIDED")
    x, g = providers.tensors(1000, torch.bfloat16)
    y, gx = providers.expected(case, x, g)["fused"]
    with pytest.raises(providers.GateError, match=r"wrong gives a value in torch\.float32"):
        providers.check(_wrong(lambda x, g: (y.float(), gx)), case, x, g, (y, gx))


def test_gate_refuses_a_provider_that_overwrites_its_inputs():
    case = Case("relu", "DECONVNET")
    x, g = providers.tensors(1000, torch.float32)
    y, gx = providers.expected(case, x, g)["fused"]
    with pytest.raises(providers.GateError, match="wrote into its inputs"):
        providers.check(_wrong(lambda x, g: (y, g.clamp_min_(0))), case, x, g, (y, gx))


def test_unknown_filter_lists_the_cases():
    with pytest.raises(ValueError, match=r"no case matches 'relux'.*relu6.*GUIDED"):
        cases.select("relux", quick=False)


def test_broken_filter_is_named():
    with pytest.raises(ValueError, match=r"the filter '\(' is not a regular expression"):
        cases.select("(", quick=False)


def test_filter_reaches_pairs_outside_the_usual_run():
    assert [case.name for case in cases.select("^mish/rectgrad$", quick=True)] == ["mish/rectgrad"]


def test_targets_find_the_worst_row():
    def row(elements, speedup):
        return {
            "case": "relu/GUIDED", "provider": "plain", "elements": elements,
            "speedup": speedup, "curved": False,
        }  # fmt: skip

    target = next(t for t in targets.TIMING if t.text.startswith("guided relu no slower"))
    rows = [row(2**10, 0.5), row(2**16, 0.55), row(2**20, 1.2), row(2**24, 0.99)]
    verdict = targets.verdict(target, rows)
    assert (verdict["met"], verdict["of"]) == (2, 4)
    assert verdict["worst"] == 0.55
    assert verdict["floor"] == pytest.approx(1 / 1.7)


def test_a_refused_provider_is_shown_without_a_time():
    row = {"provider": "idiom", "elements": 1024, "refused": "idiom gives a wrong value"}
    assert tables.cell_text(row) == "refused"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", list(cases.ACTIVATIONS))
def test_bytes_kept_are_the_plan_s(activation, dtype):
    if memory.pyrevgrad.backends._native is None:
        pytest.skip("the plan's bytes hold where the native library runs")
    every_rule = [Case(activation, rule) for rule in cases.RULES]
    for row in memory.hooked(every_rule, [dtype]):
        assert (row["fused"], row["idle"]) == (row["plan"], 0), row["case"]


def test_gradient_reversal_keeps_nothing():
    row = memory.view_row()
    assert (row["fused"], row["plan"], row["idle"]) == (0, 0, 0)


def test_resident_memory_is_the_plan_s():
    case, elements = Case("relu", "GUIDED"), 1 << 23
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    row = memory.in_own_process(case, "fused", "float32", elements, dict(environment))
    if "skipped" in row:
        pytest.skip(row["skipped"])
    assert abs(row["kept"] - elements // 8) <= targets.SLACK_BYTES


def test_a_short_run_writes_everything(tmp_path):
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    arguments = [
        "--quick", "--filter", "relu/GUIDED", "--sizes", "2^10", "2^14", "--threads", "1",
        "--allocations", "reused", "--without", "idiom+compile",
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
    for title in ("Wins", "Losses", "Targets", "Left out", "Method"):
        assert f"## {title}\n" in text
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


def _full_run():
    """Rows in the numbers of a full run."""
    generator = random.Random(0)

    def ratio():
        value = generator.uniform(0.5, 8)
        return {"speedup": value, "speedup_q1": value * 0.9, "speedup_q3": value * 1.1}

    curved = [case for case in cases.CURVED_CASES if "GUIDED" in case.name]
    curved += [case for case in cases.CURVED_CASES if "reverse" in case.name]
    timings = [
        {"case": case.name, "curved": case in curved, "provider": provider, "dtype": dtype,
         "threads": threads, "allocations": way, "elements": 1 << power, **ratio()}
        for case in (Case("relu", "GUIDED"), Case("relu", "reverse"), *curved)
        for provider in ("plain", "idiom", "eager-best", "captum", "zennit", "pytorch-revgrad")
        for dtype in ("float32", "bfloat16") for threads in (1, 2) for way in ("fresh", "reused")
        for power in range(10, 25, 2)
    ]  # fmt: skip
    moved = [
        {"kernel": kernel.name, "selects": kernel.selects, "dtype": dtype, "threads": 1,
         "bytes_per_element": kernel.bytes_per_element(dtype), "elements": 1 << power,
         "gigabytes_per_s": generator.uniform(8, 12), "copy_gigabytes_per_s": 12.0, "share": 0.9}
        for kernel in kernels.kernels(None, compute=True) for dtype in ("float32", "bfloat16")
        for power in (16, 20, 24)
    ]  # fmt: skip
    resident = [
        {"case": "relu/GUIDED", "provider": provider, "dtype": "float32", "elements": 1 << 20,
         "plan": 1 << 17, "kept": 1 << 17, "peak": 12 << 20}
        for provider in ("fused", "idiom", "plain")
    ]  # fmt: skip
    return {"timings": timings, "kernels": moved, "resident": resident}


def test_pictures_of_a_full_run_are_small(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = plots.draw(tmp_path, _full_run())
    assert drawn == ["speedup", "roofline", "curved", "memory"]
    for name in drawn:
        for ending in ("png", "svg"):
            assert 5_000 < (tmp_path / f"{name}.{ending}").stat().st_size < 200_000, name


def test_pictures_are_the_same_from_the_same_rows(tmp_path):
    pytest.importorskip("matplotlib")
    run = {**_full_run(), "timings": [], "kernels": []}
    for folder in ("one", "two"):
        assert plots.draw(tmp_path / folder, run) == ["memory"]
    one, two = ((tmp_path / folder / "memory.svg").read_bytes() for folder in ("one", "two"))
    assert one == two


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


def test_the_quick_form_has_a_case_for_every_provider():
    told = command.settings_of(_options("--quick"))
    named = {Case(*name.split("/")) for name in told["cases"]}
    applying = {name for name, rules in APPLIES.items() for rule in rules
                if Case("relu", rule) in named}  # fmt: skip
    assert applying == set(APPLIES) - {"fused-triton"}
    assert told["compile"] and set(told["few_sizes"]) <= set(told["sizes"])


def _section(name, **functions):
    module = types.ModuleType(f"bench.{name}")
    vars(module).update(functions)
    return module


def test_sections_are_measured_written_and_shown(monkeypatch):
    good = _section(
        "good", measure=lambda quick: [{"quick": quick}], section=lambda rows: f"### Good {rows}"
    )
    bad = _section("bad", measure=lambda quick: 1 / 0, section=str)
    monkeypatch.setattr(sections, "SECTIONS", (good, bad))
    found = sections.measure(True, command.processes.Progress())
    assert found["good"] == {"rows": [{"quick": True}]}
    assert found["bad"]["error"] == "ZeroDivisionError: division by zero"
    assert sections.texts(found) == [
        "### Good [{'quick': True}]",
        "### bad\n\nNot measured: ZeroDivisionError: division by zero",
    ]


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


def test_networks_are_measured_against_each_other_after_a_gate(tmp_path, capsys, monkeypatch):
    out, peak = tmp_path / "networks.json", networks.peak
    own = ("pyrevgrad", "grad-cam")  # a process each takes seconds
    monkeypatch.setattr(networks, "peak", lambda n, p, o: peak(n, p, o) if p in own else None)
    small = ["--batch", "1", "--size", "32", "--width", "4", "--seconds", "0.01"]
    assert networks.main([*small, "--networks", "resnet18", "--out", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["provider"]: row for row in record["rows"]}
    assert {*networks.installed(), networks.IDLE} == set(rows) >= {"pyrevgrad", "plain"}
    assert rows["pyrevgrad"]["speedup"] is None and rows["plain"]["speedup"] > 0
    assert rows["plain"]["ceiling"] > 0 and 0 < rows["plain"]["shared"] < 1
    assert "resnet18" in capsys.readouterr().out
    section = networks.section(record["rows"])
    assert section.startswith("## Guided") and section.count("| resnet18 |") == len(rows)


def test_the_ceiling_s_network_has_no_activation():
    model = networks.built("resnet18", 4, "cpu")
    idle = networks.without_activations(model)
    assert not any(isinstance(module, torch.nn.ReLU) for module in idle.modules())
    assert sum(isinstance(module, torch.nn.ReLU) for module in model.modules()) == 17


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_networks_have_the_published_sizes(name):
    model = networks.NETWORKS[name]()
    wanted = {"vgg16": 138_357_544, "resnet18": 11_689_512}[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == wanted


@pytest.mark.filterwarnings("ignore")
def test_a_map_that_is_the_plain_gradient_does_not_pass_the_gate():
    model = networks.built("resnet18", 4, "cpu")
    maps = {name: networks.provider(name, model) for name in networks.installed()}
    x = torch.randn(1, 3, 32, 32)
    networks.gate(maps, x)
    with pytest.raises(AssertionError, match="is the plain gradient"):
        networks.gate({"pyrevgrad": maps["plain"], "plain": maps["plain"]}, x)
    with pytest.raises(AssertionError, match="other's map is"):
        networks.gate({**maps, "other": maps["plain"]}, x)
