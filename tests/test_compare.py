"""A comparison of two versions: its interval, its rounds, what it refuses, what it leaves behind.

It runs git in folders of its own, and the suite's rooms on versions that are made up.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("bench", reason="the benchmark suite is in the repository only")
if shutil.which("git") is None:
    pytest.skip("git is not there, and versions are taken from it", allow_module_level=True)

from bench import before_after, compare, contender, end_to_end, intervals, versions
from bench.compare import Amount
from bench.versions import InputError

ROOT = Path(__file__).resolve().parent.parent


def ratios(middle: float, noise: float, launches: int = 6, rounds: int = 10):
    generator = random.Random(7)
    return [[middle * generator.gauss(1, noise) for _ in range(rounds)] for _ in range(launches)]


def test_a_fifth_more_is_slower_and_a_fifth_less_is_faster_under_five_percent_of_noise():
    slower, faster = (intervals.bootstrap(ratios(middle, 0.05)) for middle in (1.2, 1 / 1.2))
    assert slower.low < 1.2 < slower.high and slower.verdict(0.05) == "slower"
    assert faster.low < 1 / 1.2 < faster.high and faster.verdict(0.05) == "faster"


def test_little_noise_alone_is_the_same():
    assert intervals.bootstrap(ratios(1.0, 0.02)).verdict(0.05) == "same"


def test_an_interval_that_excludes_a_slowdown_of_the_margin_tells_though_it_is_wider():
    assert intervals.Interval(1.0, 0.966, 1.031).verdict(0.05) == "same"
    assert intervals.Interval(1.0, 0.94, 1.0).verdict(0.05) == "too noisy to tell"


def test_an_interval_wider_than_the_margin_cannot_tell_a_slowdown_of_the_margin():
    found = intervals.bootstrap(ratios(1.0, 0.2))
    assert found.high - found.low > 0.05 and found.verdict(0.05) == "too noisy to tell"
    assert found.verdict(0.5) == "same"


def test_a_difference_within_the_margin_is_the_same():
    found = intervals.bootstrap(ratios(1.03, 0.005))
    assert found.low > 1.02 and found.verdict(0.05) == "same"


def test_interval_holds_the_truth_about_as_often_as_it_says():
    generator = random.Random(1)
    held = 0
    for _ in range(100):
        # Launches differ from each other, as places in memory do.
        shifts = [generator.gauss(1.1, 0.03) for _ in range(8)]
        launches = [[shift * generator.gauss(1, 0.03) for _ in range(6)] for shift in shifts]
        found = intervals.bootstrap(launches, resamples=300)
        held += found.low <= 1.1 <= found.high
    assert held >= 85


def test_rounds_of_one_launch_do_not_narrow_what_launches_disagree_on():
    found = intervals.bootstrap([[1.0] * 500, [1.2] * 500, [1.1] * 500])
    assert (found.low, found.high) == (1.0, 1.2)


def test_no_ratios_are_an_error():
    with pytest.raises(ValueError, match="no ratios to take an interval of"):
        intervals.bootstrap([[]])


class Machine:
    """Two made-up versions on a machine that gets slower with every call."""

    def __init__(self, seconds: dict[str, float], sums: dict[str, list[float]] | None = None):
        self.seconds, self.calls, self.log = seconds, 0, []
        self.sums = sums or {}

    @contextlib.contextmanager
    def launched(self, packages):
        yield {name: Version(name, self) for name in packages}


class Version:
    def __init__(self, name: str, machine: Machine) -> None:
        self.name, self.machine = name, machine
        self.described = {"file": name}

    def ask(self, method: str, case: str, *_):
        if method == "prepare":
            return {"sums": [self.machine.sums.get(self.name, [1.0])], "tolerances": [1e-3]}
        if method == "calibrate":
            return 1
        self.machine.calls += 1
        self.machine.log.append(self.name)
        return self.machine.seconds[self.name] * (1 + self.machine.calls / 20)


in_repository = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="this copy of the project is no git repository"
)
PACKAGES = {"base": Path("base"), "new": Path("new")}


def run(machine: Machine, launches: int = 3, rounds: int = 8):
    amount = Amount(launches, rounds, 1e-3)
    _, times, refused = compare.measure(PACKAGES, ["a case"], amount, machine.launched)
    return compare.rows_of(times, refused, 0.05)[0]


def test_an_older_version_is_lent_nothing_of_an_installed_one(tmp_path):
    package = tmp_path / "pyrevgrad"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = 'older'\n")
    with compare.launched({"base": tmp_path}) as processes:
        described = processes["base"].described
    assert described == {"file": str(package / "__init__.py"), "version": "older"}


def test_rounds_are_base_new_new_base():
    machine = Machine({"base": 1.0, "new": 1.0})
    run(machine, 1, 2)
    assert machine.log == ["base", "new", "new", "base"] * 3  # the first round warms


def test_a_machine_that_slows_down_is_no_regression():
    row = run(Machine({"base": 1.0, "new": 1.0}))
    assert row["ratio"] == pytest.approx(1) and row["verdict"] == "same"
    assert row["rounds"] == [8, 8, 8]


def test_a_version_that_is_slower_is_found_on_a_machine_that_slows_down():
    row = run(Machine({"base": 1.0, "new": 1.3}))
    assert row["ratio"] == pytest.approx(1.3) and row["verdict"] == "slower"


def test_versions_with_different_results_get_no_time():
    row = run(Machine({"base": 1.0, "new": 0.5}, {"base": [1.0], "new": [1.5]}))
    assert row == {
        "case": "a case",
        "refused": "the versions compute different results (1 and 1.5)",
    }


def test_what_a_version_lacks_is_said():
    base = {"cannot": "AttributeError: no ReversedLinear"}
    said = compare.refusal(base, {"sums": [[1.0]], "tolerances": [1.0]})
    assert said == "base cannot run it: AttributeError: no ReversedLinear"


def test_table_shows_interval_verdict_and_refusal():
    row = {
        "case": "relu", "base_s": 1e-5, "new_s": 1.3e-5, "ratio": 1.3, "low": 1.2, "high": 1.4,
        "verdict": "slower",
    }  # fmt: skip
    text = compare.table([row, {"case": "elu", "refused": "base cannot run it"}], 0.05)
    assert re.search(r"relu +10.0 µs +13.0 µs +1\.300 \(1\.200–1\.400\)  SLOWER", text)
    assert "elu   no time: base cannot run it" in text
    assert "1 slower and 0 faster of 2, beyond noise and a margin of 5%" in text
    assert "too noisy" not in text and "could not be told" not in text


def test_table_says_of_what_it_could_not_tell_that_it_could_not():
    row = {
        "case": "relu", "base_s": 1e-5, "new_s": 1e-5, "ratio": 1.0, "low": 0.8, "high": 1.4,
        "verdict": "too noisy to tell",
    }  # fmt: skip
    text = compare.table([row, row | {"verdict": "same"}], 0.05)
    assert text.count("1.000 (0.800–1.400)  too noisy to tell") == 1
    assert "0 slower and 0 faster of 2" in text
    assert "\n1 could not be told: the interval reaches beyond the margin" in text


class Moody(Machine):
    """A machine on which `new` takes a time of its own in each measurement of three launches."""

    def __init__(self, *taken: float) -> None:
        super().__init__({"base": 1.0, "new": 1.0})
        self.taken, self.launches = taken, 0

    @contextlib.contextmanager
    def launched(self, packages):
        self.seconds = {"base": 1.0, "new": self.taken[self.launches // 3]}
        self.launches += 1
        yield {name: Version(name, self) for name in packages}


def twice(machine: Machine, monkeypatch):
    monkeypatch.setattr(compare.measure, "__defaults__", (machine.launched,))
    _, rows = compare.judged(PACKAGES, ["a case"], Amount(3, 8, 1e-3), 0.05)
    return rows[0]


@pytest.mark.parametrize(
    ("taken", "verdict"),
    [
        ((1.3, 1.3), "slower"),
        ((1.3, 1.0), "too noisy to tell"),
        ((1.3, 0.7), "too noisy to tell"),
        ((0.7, 0.7), "faster"),
        ((0.7, 1.0), "too noisy to tell"),
    ],
)
def test_a_case_is_slower_or_faster_where_fresh_processes_say_so_again(taken, verdict, monkeypatch):
    row = twice(Moody(*taken), monkeypatch)
    assert row["verdict"] == verdict and row["rounds"] == [8] * 6


def test_a_disagreement_is_no_verdict_however_clear_all_launches_together_are(monkeypatch):
    row = twice(Moody(1.3, 1.04), monkeypatch)
    assert row["verdict"] == "too noisy to tell"


def test_what_is_the_same_is_not_timed_again(monkeypatch):
    row = twice(Moody(1.0), monkeypatch)
    assert (row["verdict"], row["rounds"]) == ("same", [8] * 3)


@pytest.mark.parametrize(("load", "quiet"), [([0.2, 3.0], True), ([1.5, 1.0], False)])
def test_a_loud_machine_is_told(load, quiet):
    said = compare._provenance({"seconds": {"building": 1.0, "timing": 2.0}, "load": load})
    assert f"load average {load[0]} at the start and {load[1]} at the end" in said
    assert ("The machine was not quiet when this run started" in said) is not quiet


@pytest.fixture
def repository_of_two(tmp_path) -> Path:
    """A repository with two commits whose setup.py does not run."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "csrc").mkdir()

    def git(*words: str) -> None:
        said = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *said, *words], cwd=root, check=True, capture_output=True)

    git("init", "-q")
    for text in ("first", "second"):
        (root / "setup.py").write_text(f"print('{text} line')\nraise SystemExit('it is broken')\n")
        git("add", "-A")
        git("commit", "-q", "-m", text)
    return root


def test_an_unknown_commit_is_named(repository_of_two):
    with pytest.raises(InputError, match=r"^BASE=nothing names no commit of this repository$"):
        versions.commit_of("nothing", repository_of_two)


def test_an_option_is_no_commit(repository_of_two):
    with pytest.raises(InputError, match=r"BASE=--all names no commit"):
        versions.commit_of("--all", repository_of_two)


def test_a_shallow_clone_is_told_the_cure(repository_of_two, tmp_path):
    shallow = tmp_path / "shallow"
    command = ["git", "clone", "-q", "--depth", "1", f"file://{repository_of_two}", str(shallow)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(InputError, match=r"names no commit .*`git fetch --unshallow`"):
        versions.commit_of("HEAD~1", shallow)


def test_a_folder_that_is_no_repository_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(InputError, match="git rev-parse failed: fatal: not a git repository"):
        versions.commit_of("HEAD", tmp_path)


def test_what_is_compiled_and_not_committed_counts_as_different(repository_of_two):
    commit = versions.commit_of("HEAD", repository_of_two)
    assert not versions.native_differs(commit, repository_of_two)
    assert versions.native_differs(
        versions.commit_of("HEAD~1", repository_of_two), repository_of_two
    )
    (repository_of_two / "csrc" / "new.h").write_text("")
    assert versions.native_differs(commit, repository_of_two)


def test_a_worktree_is_the_commit_s_and_is_gone_afterwards(repository_of_two, tmp_path):
    commit = versions.commit_of("HEAD~1", repository_of_two)
    with (
        pytest.raises(ZeroDivisionError),
        versions.checked_out(commit, tmp_path / "base", repository_of_two) as tree,
    ):
        assert "first line" in (tree / "setup.py").read_text()
        raise ZeroDivisionError
    assert not tree.exists()
    assert len(versions.git("worktree", "list", root=repository_of_two).splitlines()) == 1


def test_a_base_that_does_not_build_ends_with_its_last_lines(repository_of_two, tmp_path):
    with pytest.raises(InputError, match=r"(?s)it does not build.*second line.*it is broken"):
        versions.build(repository_of_two, tmp_path / "built", "portable", tmp_path)


def test_a_version_with_the_same_compiled_sources_takes_the_libraries_of_the_other(tmp_path):
    other, tree = tmp_path / "other", tmp_path / "tree"
    (other / "pyrevgrad").mkdir(parents=True)
    for name in ("_native.abi3.so", "_autograd.txt", "rules.py"):
        (other / "pyrevgrad" / name).write_text("of the other")
    (tree / "pyrevgrad").mkdir(parents=True)
    (tree / "pyrevgrad" / "rules.py").write_text("own = 1")
    (tree / "setup.py").write_text(
        "from setuptools import setup\nsetup(name='p', packages=['pyrevgrad'], py_modules=[])\n"
    )
    package = versions.build(tree, tmp_path / "built", "portable", tmp_path, other) / "pyrevgrad"
    for name in ("_native.abi3.so", "_autograd.txt"):
        assert (package / name).read_text() == "of the other"
    assert (package / "rules.py").read_text() == "own = 1"


def test_how_long_building_takes_is_said_as_it_is(tmp_path):
    assert versions.said_of_building(False, tmp_path / "none") == (
        "no compiled source differs: one build for both, which takes minutes, since build/objects "
        "holds no objects"
    )
    (tmp_path / "dispatch.o").write_text("")
    assert versions.said_of_building(False, tmp_path).endswith("is taken: seconds")
    assert versions.said_of_building(True, tmp_path) == (
        "compiled sources differ: two builds, which takes minutes"
    )


def test_a_clean_tree_holds_nothing_that_is_not_committed(repository_of_two):
    assert not versions.dirty(repository_of_two)
    (repository_of_two / "new.py").write_text("")
    assert versions.dirty(repository_of_two)


def test_objects_go_along_to_be_reused_but_cuda_s(tmp_path):
    objects, folder = tmp_path / "objects", tmp_path / "built"
    objects.mkdir()
    (tmp_path / "setup.py").write_text("")
    for name in ("dispatch.o", "dispatch.digest", "cuda_runtime.o", "_native_cuda.abi3.so"):
        (objects / name).write_text(name)
    assert versions.build(tmp_path, folder, "portable", objects) == folder / "package"
    copied = {path.name for path in (folder / "build" / "objects").iterdir()}
    assert copied == {"dispatch.o", "dispatch.digest"}


def test_what_was_built_is_left_whole_to_a_checkout_that_lacks_it(tmp_path):
    objects, built = tmp_path / "own" / "objects", tmp_path / "built" / "build" / "objects"
    built.mkdir(parents=True)
    for name in ("rules.o", "rules.digest", "cut.o", "_native.abi3.so", "_native.abi3.digest"):
        (built / name).write_text("built")
    versions.keep(tmp_path / "built", objects)
    whole = {"rules.o", "rules.digest", "_native.abi3.so", "_native.abi3.digest"}
    assert {path.name for path in objects.iterdir()} == whole
    for name in ("rules.o", "rules.digest"):
        (objects / name).write_text("own")
    versions.keep(tmp_path / "built", objects)
    assert {path.read_text() for path in objects.glob("rules.*")} == {"own"}
    assert (objects / "_native.abi3.so").read_text() == "built"


@in_repository
def test_bad_input_is_status_two_and_a_sentence_but_not_for_a_report(capsys):
    assert compare.main(["no-such-commit", "--quick"]) == 2
    assert "nothing is compared: BASE=no-such-commit names no commit" in capsys.readouterr().err
    assert compare.main(["no-such-commit", "--report"]) == 0
    assert compare.main(["HEAD", "--filter", "nothing like it"]) == 2
    assert "relu/guided, 16 float32" in capsys.readouterr().err


@in_repository
@pytest.mark.parametrize(("ratio", "status"), [(1.0, 0), (1.3, 1), (0.7, 0)])
def test_status_is_one_where_a_case_is_slower_beyond_noise(ratio, status, monkeypatch, tmp_path):
    machine = Machine({"base": 1.0, "new": ratio})
    monkeypatch.setattr(compare, "launched", machine.launched)
    monkeypatch.setattr(compare.measure, "__defaults__", (machine.launched,))
    nothing_built = contextlib.nullcontext(dict(PACKAGES))
    monkeypatch.setattr(versions, "both_built", lambda *_: nothing_built)
    out = tmp_path / "out.json"
    arguments = ["HEAD", "--quick", "--filter", "reverse_gradient", "--json", str(out)]
    assert compare.main(arguments) == status
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["rows"][0]["ratio"] == pytest.approx(ratio)
    assert compare.main([*arguments, "--report"]) == 0


@in_repository
def test_a_named_comparison_is_kept_as_a_file_that_the_page_links(monkeypatch, tmp_path, capsys):
    machine = Machine({"base": 1.0, "new": 0.7})
    monkeypatch.setattr(compare.measure, "__defaults__", (machine.launched,))
    built = []

    def both_built(*asked):
        built.append(asked)
        return contextlib.nullcontext(dict(PACKAGES))

    monkeypatch.setattr(versions, "both_built", both_built)
    words = ["HEAD", "--new", "HEAD", "--quick", "--filter", "reverse_gradient"]
    assert compare.main([*words, "--record", "half-types", "--out", str(tmp_path)]) == 0
    commit = versions.commit_of("HEAD")
    assert built == [(commit, compare._capability(), commit)]
    record = json.loads((tmp_path / "compare-half-types.json").read_text(encoding="utf-8"))
    assert (record["name"], record["settings"]["threads"]) == ("half-types", 1)
    assert record["machine"]["processors"] > 0 and record["minutes"] >= 0
    text = (tmp_path / "compare-half-types.md").read_text(encoding="utf-8")
    assert "| reverse_gradient, 16 float32 | " in text and " | **faster** |" in text
    assert f"{commit} against {commit}" in text
    assert "written: " in capsys.readouterr().out
    line = end_to_end.versions_table([record], "results/abacus/").splitlines()[2]
    assert line.startswith("| [half-types](results/abacus/compare-half-types.md) | ")
    assert " | 1/1 | 0/1 | 0.70 (" in line


def test_a_name_that_is_no_file_s_is_refused_before_anything_is_built():
    for name in ("../x", "Half types", "", "a--b"):
        with pytest.raises(InputError, match="small letters, digits and single dashes"):
            before_after.check_name(name)
    before_after.check_name("half-types-2")


@in_repository
def test_an_unknown_new_commit_is_named_as_such(capsys):
    assert compare.main(["HEAD", "--new", "no-such-commit", "--quick"]) == 2
    assert "NEW=no-such-commit names no commit" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in contender.names(False) if n.endswith(" 16 float32")])
def test_this_version_runs_every_case(name):
    subject = contender.Contender()
    found = subject.prepare(name)
    assert compare.refusal(found, found) is None
    assert subject.run(name, 2) > 0 and subject.calibrate(name, 1e-4) >= 1


def test_a_case_that_this_version_lacks_is_an_answer_and_no_crash():
    found = contender.Contender().prepare("no_such_activation/guided, 16 float32")
    assert found["cannot"].startswith("AttributeError: ")
