"""The page: verdicts, tables and pictures are those of the rows, from every record there is."""

from __future__ import annotations

import json
import random
import types
from pathlib import Path

import pytest

pytest.importorskip("bench", reason="the benchmark suite is in the repository only")

from bench import (
    bars,
    cases,
    ceilings,
    end_to_end,
    kernels,
    page,
    plots,
    processes,
    records,
    sections,
    summary,
    tables,
    targets,
    verdicts,
)
from bench.cases import Case
from bench.timing import Measured


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
    assert targets.word(verdict) == "missed" and targets.said(verdict) == "missed 2/4"
    rows[3]["speedup_high"] = 1.01
    assert targets.said(targets.verdict(target, rows)) == "missed 2/4, 1 level"
    rows[1]["speedup_high"] = 0.6
    assert targets.said(targets.verdict(target, rows)) == "level 2/4, 2 level"
    assert targets.said(targets.verdict(target, [rows[0], rows[2]])) == "met 2/2"
    # A figure above its floor, too, is met only where its whole interval is.
    rows[2]["speedup_low"] = 0.99
    assert targets.said(targets.verdict(target, [rows[0], rows[2]])) == "level 1/2, 1 level"


def test_a_cell_where_ours_was_refused_met_no_floor():
    rows = [_cell("plain", 2.0), _cell("plain", 2.0, power=22), _cell("fused", 1.0, power=22)]
    del rows[1]["speedup"], rows[2]["speedup"], rows[2]["median_s"]
    rows[2]["refused"] = "fused gives a wrong value"
    (verdict,) = [v for v in targets.judge(rows, []) if v["target"].startswith("guided relu no")]
    assert targets.said(verdict) == "missed 1/2, 1 refused"
    (verdict,) = targets.judge(rows[1:], [])
    assert targets.said(verdict) == "missed 0/1, 1 refused"
    run = {**_suite(), "timings": rows}
    text = page.page(run, {}, [], [], "")
    assert "* **Refused by the gate, with no time: `fused` in 1 cells (fused gives a wrong" in text
    assert "| **missed** 1/2, 1 refused |" in text
    assert "1 were missed in some" in text
    nothing = page.page({**run, "timings": rows[1:]}, {}, [], [], "")
    assert "`fused` was not timed." in nothing and "Refused by the gate" in nothing


def test_a_refused_provider_is_shown_without_a_time():
    row = {"provider": "idiom", "elements": 1024, "refused": "idiom gives a wrong value"}
    assert tables.cell_text(row) == "refused"


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


def _section(name, **functions):
    module = types.ModuleType(f"bench.{name}")
    vars(module).update(functions)
    return module


def test_sections_are_measured_written_and_shown(monkeypatch):
    good = _section(
        "good",
        measure=lambda quick: [{"quick": quick}],
        section=lambda rows: f"## Good {rows}",
        summary=lambda rows: f"## Good: {len(rows)}",
    )
    bad = _section("bad", measure=lambda quick: 1 / 0, section=str)
    monkeypatch.setattr(sections, "SECTIONS", (good, bad))
    found = sections.measure(True, processes.Progress())
    assert found["good"] == {"rows": [{"quick": True}]}
    assert found["bad"]["error"] == "ZeroDivisionError: division by zero"
    failed = "## bad\n\nNot measured: ZeroDivisionError: division by zero"
    assert sections.texts(found) == ["## Good [{'quick': True}]", failed]
    assert sections.summaries(found) == ["## Good: 1", failed]


def _cell(provider, speedup, case="relu/GUIDED", power=20, **more):
    return {
        "case": case, "curved": False, "provider": provider, "dtype": "float32", "threads": 1,
        "allocations": "fresh", "elements": 1 << power, "speedup": speedup,
        "median_s": 1e-3, "faults": 0.0, "speedup_q1": speedup - 0.1, "speedup_q3": speedup + 0.1,
        "ceiling": 1.23, **more,
    }  # fmt: skip


def test_wins_keep_small_and_large_sizes_apart_and_show_the_ceiling():
    rows = [_cell("plain", 0.8, power=10), _cell("plain", 1.5), _cell("plain", 0.9, power=22)]
    text = summary.wins([*rows, _cell("copy", 0.1)])
    assert "| relu, guided | plain | 0.80, 0/1 | 1.20 (0.90–1.50), 1/2 | 1.23 |" in text
    assert "copy" not in text


def test_the_short_answer_counts_what_was_lost_and_what_is_level():
    rows = [
        _cell("plain", 0.8, power=10),
        _cell("plain", 1.5, speedup_low=0.9),
        _cell("idiom", 3.0),
    ]
    floor = {"target": "a floor", "met": 1, "of": 2, "wrong": []}
    run = {**_suite(), "timings": [*rows, _cell("captum", 0.9)], "memory_targets": [floor]}
    text = summary.in_short(run, {})
    same = "`fused` won 1, is level in 0 and lost 1 of 2 cells against what does the same job."
    assert f"* From 2¹⁶ elements {same}" in text
    plain = "against PyTorch's own activation with its ordinary backward, which does less (median "
    assert f"* From 2¹⁶ elements `fused` won 0, is level in 1 and lost 0 of 1 cells {plain}" in text
    assert (
        f"* Below 2¹⁶ elements `fused` won 0, is level in 0 and lost 1 of 1 cells {plain}" in text
    )
    # The plain cells of two sizes, the idiom's, and a floor of memory.
    assert "Of the 3 floors that the project set itself 1 were met in every cell, 1 are" in text
    assert "and 1 were missed in some." in text


def test_the_headline_counts_the_floors_of_every_section():
    host_row = {"recorder": "python", "case": "relu/GUIDED", "what": "forward + backward",
                "provider": "fused", "elements": 1024, "ratio": 1.7, "ratio_q1": 1.6,
                "ratio_q3": 1.8, "ratio_low": 1.4, "ratio_high": 1.9}  # fmt: skip
    run = {**_suite(), "timings": [], "sections": {"host": {"rows": [host_row]}}}
    found = verdicts.floors(run, {"networks": _networks()})
    assert found == {
        "host time per call at most 1.5 × F.relu's, fused, Python Functions": "level",
        "networks: vgg16, at least 1.3 × captum": "missed",
        "networks: vgg16, at least 1 × plain": "met",
        "networks: vgg16, lowest peak memory": "missed",
    }
    host_row["ratio_low"] = 1.6
    assert "missed" in verdicts.floors(run, {}).values()
    host_row["ratio_high"] = host_row["ratio_low"] = 1.5
    assert "met" in verdicts.floors(run, {}).values()
    assert "Of the 4 floors that the project set itself 2 were met" in verdicts.headline(
        run, {"networks": _networks()}
    )


def test_what_is_compiled_has_a_table_of_its_own_with_its_losses():
    ends = {"compiled_speedup_low": 0.4, "compiled_speedup_high": 0.6}
    rows = [
        _cell("best+compile", 3.0, compiled_speedup=0.5, **ends),
        _cell("best+compile", 3.0, power=10, compiled_speedup=2.0),
        _cell("plain+compile", 0.7, compiled_speedup=1.2, compiled_speedup_low=0.9),
        _cell("fused+compile", 2.0, speedup_low=1.6, speedup_high=2.5),
    ]
    lines = summary.compiled(rows).splitlines()[2:]
    own = "| relu/GUIDED | best+compile | float32 | 2.00, 1 · 0 · 0 | 0.50, 0 · 0 · 1 | 0.50, 2²⁰"
    assert lines[0].startswith(own)
    assert "| relu/GUIDED | plain+compile | float32 | – | 1.20, 0 · 1 · 0 | " in lines[1]
    assert "| fused, not compiled | float32 | – | 0.50, 0 · 0 · 1 | " in lines[2]
    assert "plain+compile" not in summary.wins(rows) and "fused+compile" not in summary.wins(rows)
    run = {**_suite(), "timings": rows}
    assert "## Under torch.compile\n" in page.page(run, {}, [], [], "")
    assert "Under torch.compile" not in page.page(_suite(), {}, [], [], "")
    assert verdicts.other_losses(run, {}) == [
        "* [Under torch.compile](#under-torchcompile): slower in 1 of 2 cells against "
        "best+compile, 0 of 1 cells against plain+compile."
    ]


def test_losses_name_those_of_the_other_sections():
    layout = {"kind": "layout", "provider": "fused", "ratio": 1.2}
    call = {"recorder": "c++", "provider": "fused", "what": "compiled", "ratio": 1.1}
    run = {**_suite(), "sections": {"scaling": {"rows": [layout, {**layout, "ratio": 0.9}]},
                                    "host": {"rows": [call]}}}  # fmt: skip
    networks = _networks()
    networks["rows"][2] |= {"speedup": 0.9, "speedup_low": 0.8, "speedup_high": 0.95}
    lines = verdicts.other_losses(run, {"networks": networks})
    assert lines == [
        "* [Host time per call](#host-time-per-call): slower than PyTorch's own in 0 of 0 of "
        "fused, C++ nodes, 0 of 0 of fused, Python Functions, 1 of 1 compiled.",
        "* [Layouts](#scaling): slower than PyTorch's own in 1 of 2 cells.",
        "* [Guided backpropagation of whole networks](#guided-backpropagation-of-whole-networks): "
        "slower than plain on vgg16 (0.90).",
    ]


def test_losses_name_the_cases_of_which_more_is_kept():
    def row(provider, mebibytes):
        return {"case": "relu/GUIDED", "provider": provider, "kept": mebibytes << 20}

    few = [row("fused", 2), row("plain", 64), row("fused+compile", 64), row("plain+compile", 16)]
    assert verdicts.other_losses({**_suite(), "resident": few}, {}) == [
        "* Memory, each row in a process of its own: more is kept of relu/GUIDED by fused+compile "
        "(64.0 MiB; plain+compile 16.0)."
    ]
    assert verdicts.other_losses({**_suite(), "resident": few[:3]}, {}) == []


def test_losses_name_the_worst_cell_of_each_kind_or_of_each_case():
    rows = [_cell("plain", 0.8), _cell("plain", 0.7, case="relu/guided_scaled", power=10)]
    (line,) = summary.losses([*rows, _cell("idiom", 3.0)]).splitlines()[2:]
    assert line.startswith("| relu, guided | plain | float32 | 2/2 | 0 | 2¹⁰, 2²⁰ | 0.70 (0.60–")
    (line,) = summary.losses([rows[0], {**rows[1], "speedup_high": 1.1}]).splitlines()[2:]
    assert line.startswith("| relu, guided | plain | float32 | 1/2 | 1 | 2²⁰ | 0.80 (0.70–0.90) ")
    assert len(summary.losses(rows, by_case=True).splitlines()) == 4
    assert summary.losses([_cell("idiom", 3.0)]) == "No cell of these."


def test_reasons_that_name_their_case_are_told_once():
    rows = [
        {"case": name, "provider": "numpy", "skipped": f"no NumPy gate is written for {name}"}
        for name in ("elu/GUIDED", "gelu/GUIDED")
    ]
    wanted = "* `numpy` on elu/GUIDED, gelu/GUIDED: no NumPy gate is written for the case"
    assert summary.left_out(rows) == wanted
    (said,) = summary.without_figures(rows)
    assert said.startswith("`numpy` has no figure: no NumPy gate is written for ")


def test_a_ceiling_is_the_time_over_the_network_s_without_activations():
    seconds = {"fused": 4.0, "plain": 5.0, "plain+compile": 3.0, "fused+compile": 2.0}
    seconds[ceilings.IDLE] = 2.5
    measured = {name: Measured((one, 2 * one), 1, 0.0) for name, one in seconds.items()}
    found = {name: ceilings.figures(measured, name, "fused") for name in measured}
    assert (found["plain"]["speedup"], found["plain"]["ceiling"]) == (1.25, 2.0)
    # Compiled is compared with ours compiled, and its layers run other code than the ceiling's.
    compiled = found["plain+compile"]
    assert (compiled["speedup"], compiled["ceiling"]) == (1.5, None)
    assert found["fused"]["speedup"] is None and found["fused+compile"]["speedup"] is None
    assert (found["plain"]["speedup_low"], found["plain"]["speedup_high"]) == (1.25, 1.25)
    assert "speedup_low" not in found["fused"]


MACHINE = {
    "processor": "Abacus 9", "processors": 2, "system": "Linux", "libc": "glibc", "python": "3.11",
    "transparent_huge_pages": "never", "torch": "2.13.0", "torch_kernels": "AVX2", "numpy": "2.4",
    "pyrevgrad": "0.1.0", "native": "built", "autograd": "C++ nodes", "triton": "not in use",
    "peers": {"captum": "0.9.0", "zennit": None}, "gpu": None, "commit": "abc", "dirty": False,
}  # fmt: skip


def _network_row(provider, speedup, ceiling, mebibytes, floor=None):
    row = {"network": "vgg16", "provider": provider, "batch": 4, "size": 224, "width": 64}
    row |= {"threads": 1, "device": "cpu", "median_s": 4.0, "q1_s": 3.9, "q3_s": 4.1, "runs": 5}
    for key, value in (("speedup", speedup), ("ceiling", ceiling)):
        quartiles = (None, None) if value is None else (value - 0.01, value + 0.01)
        row |= {key: value, f"{key}_q1": quartiles[0], f"{key}_q3": quartiles[1]}
    return row | {"floor": floor, "shared": None, "peak_bytes": mebibytes << 20}


def _networks(**changes):
    rows = [
        _network_row("fused", None, None, 300),
        _network_row("captum", 1.1, 1.2, 500, 1.3),
        _network_row("plain", 1.02, 1.1, 290, 1.0),
    ]
    return {
        "command": "python -m bench.networks", "date": "2026-01-02T03:04:05", "minutes": 7.0,
        "load": [0.1, 1.0], "machine": MACHINE, "settings": {}, "rows": rows,
        "left_out": {"zennit": "zennit is not installed"}, **changes,
    }  # fmt: skip


def test_networks_are_judged_by_their_floors_wins_and_losses_alike():
    text = end_to_end.networks_section(_networks())
    assert "2026-01-02T03:04:05, commit abc, `python -m bench.networks`, 7.0 minutes" in text
    assert "captum 0.9.0" in text
    assert (
        "* vgg16, at least 1.3 × captum: **missed**, 1.10 (1.09–1.11); the ceiling, 1.20, is below "
        "the floor" in text
    )
    assert "* vgg16, at least 1 × plain: met, 1.02 (1.01–1.03)" in text
    assert "* vgg16, lowest peak memory: **missed**, 300.0 MiB against 290.0 by plain" in text
    assert "* skipped: zennit: zennit is not installed" in text


def test_what_a_run_cannot_tell_from_its_floor_is_neither_met_nor_missed():
    run = _networks()
    _, captum, plain = run["rows"]
    assert "* vgg16, at least 1 × plain: met, 1.02" in end_to_end.networks_section(run)
    plain |= {"speedup_low": 0.99, "speedup_high": 1.05}
    assert "* vgg16, at least 1 × plain: level, 1.02" in end_to_end.networks_section(run)
    plain |= {"speedup": 0.98, "speedup_low": 0.951, "speedup_high": 1.013}
    captum |= {"speedup_low": 1.05, "speedup_high": 1.15}
    run["rows"][0]["peak_bytes"] = (290 << 20) + 1024
    text = end_to_end.networks_section(run)
    level = "* vgg16, at least 1 × plain: level, 0.98 (1.01–1.03); the median's 95 % interval, "
    assert level + "0.951–1.013, holds 1\n" in text
    assert "* vgg16, at least 1.3 × captum: **missed**" in text
    assert "* vgg16, lowest peak memory: level, 290.0 MiB against 290.0 by plain" in text


@pytest.mark.parametrize(
    ("ours", "theirs", "judged"), [(409600, 294912, False), (3 << 18, 1 << 21, True)]
)
def test_a_peak_of_a_few_slacks_is_no_floor(ours, theirs, judged):
    # 256 KiB of slack decide below 1 MiB.
    fused, captum, plain = _networks()["rows"]
    rows = [fused | {"peak_bytes": ours}, captum, plain | {"peak_bytes": theirs}]
    peak = end_to_end.network_verdicts(rows)[-1]
    assert peak[:2] == ("vgg16, lowest peak memory", "met" if judged else "too small to judge")
    found = verdicts.floors(_suite(), {"networks": {"rows": rows}})
    assert ("networks: vgg16, lowest peak memory" in found) is judged


def _suite():
    """A record of the whole suite with a row or two in every part."""
    run = {"command": "python -m bench", "date": "2026-01-02T03:04:05", "minutes": 10.0}
    run |= {"quick": False, "load": [0.1, 1.0], "machine": MACHINE, "targets": []}
    run |= {"settings": {"threads": [1], "dtypes": ["float32"]}, "memory_targets": []}
    run |= {"timings": [_cell("plain", 1.5)], "kernels": [], "kept": [], "resident": []}
    return run | {"sections": {}}


def test_the_page_holds_every_record_of_its_folder_and_says_how_to_make_the_others(tmp_path):
    folder, path = tmp_path / "results" / "abacus", tmp_path / "README.md"
    folder.mkdir(parents=True)
    assert not records.write_page(folder, path) and not path.exists()
    (folder / "results.json").write_text(json.dumps(_suite()), encoding="utf-8")
    assert records.write_page(folder, path)
    before = path.read_text(encoding="utf-8")
    assert "Not recorded here yet: `make bench-networks` does it" in before
    assert "[every table](results/abacus/TABLES.md)" in before
    assert "Before and after" not in before
    (folder / "networks.json").write_text(json.dumps(_networks()), encoding="utf-8")
    (folder / "networks.png").write_bytes(b"")
    records.write_page(folder, path)
    text = path.read_text(encoding="utf-8")
    assert end_to_end.networks_section(_networks()) in text
    assert "![networks](results/abacus/networks.png)" in text
    assert "`make bench-networks` does it" not in text and "`make bench-training` does it" in text
    assert records.newest(tmp_path / "results") == folder
    assert (folder / "TABLES.md").read_text(encoding="utf-8").startswith("# Every table\n")


def test_the_page_is_made_of_the_newest_record_and_leads_to_the_other_machines(tmp_path):
    results, path = tmp_path / "results", tmp_path / "README.md"
    for name, date in (("old", "2026-01-02"), ("new", "2026-02-01"), ("older", "2025-12-30")):
        (results / name).mkdir(parents=True)
        record = json.dumps({**_suite(), "date": date})
        (results / name / "results.json").write_text(record, encoding="utf-8")
    (results / "a-gpu").mkdir()
    (results / "a-gpu" / "README.md").write_text("made by another command", encoding="utf-8")
    assert records.newest(results) == results / "new"
    assert records.newest(tmp_path / "nowhere") is None
    assert records.write_page(results / "new", path)
    links = ", ".join(f"[{name}](results/{name}/README.md)" for name in ("a-gpu", "old", "older"))
    assert f"Other machines: {links}." in path.read_text(encoding="utf-8")
    assert "\n* 2026-02-01, " in path.read_text(encoding="utf-8")
    for name, date in (("old", "2026-01-02"), ("new", "2026-02-01")):
        own = (results / name / "README.md").read_text(encoding="utf-8")
        assert "[every table](TABLES.md)" in own and f"\n* {date}, " in own
        assert "Other machines" not in own
    gpu = (results / "a-gpu" / "README.md").read_text(encoding="utf-8")
    assert gpu == "made by another command"
    assert records.project_pages(tmp_path / "nowhere", path) == {}


def test_the_suite_s_pictures_are_drawn_anew_and_the_networks_stay(tmp_path):
    for name in ("speedup", "networks"):
        (tmp_path / f"{name}.png").write_bytes(b"old")

    def draw():
        raise ImportError("no matplotlib")

    records.drawn(tmp_path, ("speedup", "memory"), draw)
    assert [path.name for path in tmp_path.iterdir()] == ["networks.png"]


def test_pictures_of_whole_networks_are_small_and_the_same_from_the_same_rows(tmp_path):
    pytest.importorskip("matplotlib")
    rows = _networks()["rows"]
    for name in ("one", "two"):
        bars.draw(tmp_path / name, "networks", rows)
    one, two = ((tmp_path / f"{name}.svg").read_bytes() for name in ("one", "two"))
    assert one == two and b"captum" in one
    assert 3_000 < (tmp_path / "one.png").stat().st_size < 100_000


def test_the_recorded_pages_are_up_to_date():
    results = Path(__file__).resolve().parent.parent / "bench" / "results"
    made = records.project_pages(results, results.parent / "README.md")
    if not made:
        pytest.skip("nothing is recorded")
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, "run python docs/generate.py"
