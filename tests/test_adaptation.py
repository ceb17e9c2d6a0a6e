"""``python -m pyrevgrad train``: its data, its files, its resuming, and what it refuses."""

import csv
import math

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from matplotlib.figure import Figure
from sklearn.datasets import load_digits, make_moons

from pyrevgrad import __main__, adaptation
from pyrevgrad.adaptation import arrays, command, datasets, networks
from pyrevgrad.adaptation.arrays import DataError
from pyrevgrad.adversarial import CDAN, RandomizedProduct

FILES = ("metrics.csv", "curves.png", "embedding.png", "seed-0.pt")


def run(folder, *options):
    return adaptation.main([*map(str, options), "--out", str(folder)])


def saved(path, **parts):
    np.savez(path, **parts)
    return path


def table(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def files(tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 6)) * [1, 10, 100, 0, 1, 1] + 5
    y = (x[:, 0] > 5).astype("int32")
    source = saved(tmp_path / "source.npz", x=x, y=y)
    target = saved(tmp_path / "target.npz", x=x[:40] + 0.5)
    return source, target


# Data.


def test_the_moons_are_the_published_ones():
    (x, y), (target, answers) = datasets.moons()
    plain, labels = make_moons(150, noise=0.05, random_state=1)
    np.testing.assert_allclose(x, (plain - plain.mean(0)) * 2)
    assert y.tolist() == labels.tolist() and answers.sum() == 75
    other, _ = make_moons(150, noise=0.05, random_state=2)
    other = (other - plain.mean(0)) * 2
    turned = target.numpy() @ [1, 1j]
    np.testing.assert_allclose(turned, other @ [1, 1j] * np.exp(1j * math.radians(35)))


@pytest.mark.parametrize("shift", datasets.SHIFTS)
def test_no_digit_is_in_two_domains_and_only_the_target_is_shifted(shift):
    data = datasets.digits_domains(0, shift)
    published = load_digits().images.reshape(-1, 64) / 16
    rows = {tuple(row) for row in published.astype("float32").tolist()}
    assert all(tuple(row) in rows for row in data.source[0].tolist())
    assert sum(tuple(row) in rows for row in data.target.tolist()) == 0
    assert (len(data.source[0]), len(data.target), data.target.shape[1]) == (1000, 400, 64)
    assert data.target.min() >= 0 and data.target.max() <= 1
    again = datasets.digits_domains(0, shift)
    assert torch.equal(again.target, data.target)


@pytest.mark.parametrize(("right", "down"), [(1, 1), (-2, 0), (0, 3)])
def test_a_shift_moves_by_whole_pixels(right, down):
    images = torch.rand(2, 5, 6)
    wanted = torch.zeros_like(images)
    for row in range(5):
        for column in range(6):
            if 0 <= row - down < 5 and 0 <= column - right < 6:
                wanted[:, row, column] = images[:, row - down, column - right]
    assert torch.equal(datasets.shifted(images, right, down), wanted)


def test_own_arrays_are_made_standard_by_the_source_alone(files):
    source, target = files
    data = arrays.load(source, target, seed=0)
    assert (len(data.source[0]), len(data.held_out[0]), len(data.target)) == (48, 12, 40)
    mean, deviation = data.source[0].mean(0), data.source[0].std(0)
    moving = torch.tensor([True, True, True, False, True, True])
    torch.testing.assert_close(mean, torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(deviation[moving], torch.ones(5))
    assert data.target.isfinite().all() and data.target_test is None and data.classes == 2
    other = arrays.load(source, target, seed=1)
    assert not torch.equal(other.held_out[0], data.held_out[0])


@pytest.mark.parametrize("shape", [(12, 9), (3, 12, 10)])
def test_images_are_made_standard_by_channel(tmp_path, shape):
    x = np.random.default_rng(0).integers(0, 256, (20, *shape), dtype="uint8")
    path = saved(tmp_path / "images.npz", x=x, y=np.arange(20) % 3)
    data = arrays.load(path, path, 0)
    channels = 1 if len(shape) == 2 else 3
    assert data.target.shape[1:] == (channels, *shape[-2:])
    torch.testing.assert_close(
        data.source[0].std((0, 2, 3)), torch.ones(channels), atol=1e-4, rtol=0
    )
    assert data.target_test is not None


# Networks.


def test_every_method_begins_with_the_same_features():
    made = {
        method: networks.build(
            method, torch.Size([7]), 3, networks.schedule_of("ganin", 5, 1.0), 0.5, seed=4
        )
        for method in networks.METHODS
    }
    for part in ("features", "label_head"):
        states = [getattr(model, part).state_dict() for model in made.values()]
        for name, value in states[0].items():
            assert all(torch.equal(state[name], value) for state in states)
    assert isinstance(made["cdan"], CDAN)
    assert (made["dann"].domain_weight, made["none"].domain_weight) == (0.5, 0.0)


def test_cdan_of_many_classes_is_randomized():
    schedule = networks.schedule_of("constant", 5, 1.0)
    model = networks.build("cdan", torch.Size([7]), 100, schedule, 1.0, 0)
    assert isinstance(model.conditioning, RandomizedProduct)
    labels = torch.arange(6)
    assert model(torch.randn(6, 7), labels, torch.randn(4, 7)).loss.isfinite()


@pytest.mark.parametrize(("name", "ends"), [("ganin", 1.9998), ("linear", 2.0), ("constant", 2.0)])
def test_every_schedule_ends_at_the_scale(name, ends):
    schedule = networks.schedule_of(name, 4, 2.0)
    for _ in range(4):
        schedule.step()
    assert schedule.value == pytest.approx(ends, abs=1e-4)


# Runs.


@pytest.mark.parametrize("method", networks.METHODS)
def test_a_run_leaves_its_files_and_says_where_it_ended(tmp_path, capsys, method):
    folder = tmp_path / "deep" / "run"
    options = ("--data", "moons", "--method", method, "--epochs", 2, "--seeds", 2)
    assert run(folder, *options) == 0
    for name in (*FILES, "seed-1.pt"):
        assert (folder / name).stat().st_size > 0
    rows = table(folder)
    assert [(row["seed"], row["epoch"]) for row in rows] == [
        ("0", "1"), ("0", "2"), ("1", "1"), ("1", "2"),
    ]  # fmt: skip
    said = capsys.readouterr().out
    ends = [float(row["target_accuracy"]) for row in rows[1::2]]
    assert f"moons, method {method}, 2 seeds" in said
    assert f"target accuracy: {sum(ends) / 2:.3f} (from {min(ends):.3f}" in said


@pytest.mark.parametrize("method", networks.METHODS)
def test_of_a_domain_head_that_is_not_trained_nothing_is_told(
    tmp_path, capsys, monkeypatch, method
):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    assert run(tmp_path, "--data", "moons", "--method", method, "--epochs", 1) == 0
    trained = method != "none"
    assert ("domain accuracy" in capsys.readouterr().out) == trained
    names = {"domain_accuracy", "domain_loss", "scale", "gradient_norm"}
    assert names & table(tmp_path)[0].keys() == (names if trained else set())
    curves = [line.get_label().split(" (")[0] for axes in drawn[0].axes for line in axes.lines]
    told = ["domain", "domain", "λ", "‖reversed gradient‖"] if trained else []
    assert sorted(curves) == sorted(["held-out source", "target", "label", *told])


def test_own_arrays_run_and_an_unlabelled_target_is_said(tmp_path, files, capsys):
    source, target = files
    assert run(tmp_path / "run", "--source", source, "--target", target, "--epochs", 2) == 0
    said = capsys.readouterr().out
    assert "source to target" in said and "accuracy is not known" in said
    assert "target_accuracy" not in table(tmp_path / "run")[0]


def test_own_images_run(tmp_path):
    x = np.random.default_rng(0).normal(size=(24, 3, 9, 9)).astype("float16")
    path = saved(tmp_path / "images.npz", x=x, y=np.arange(24) % 4)
    options = ("--source", path, "--target", path, "--epochs", 1, "--method", "cdan")
    assert run(tmp_path / "run", *options) == 0


def test_a_killed_run_continues_to_the_same_figures(tmp_path, monkeypatch, capsys):
    options = ("--data", "moons", "--epochs", 4, "--seeds", 2)
    assert run(tmp_path / "whole", *options) == 0
    plain = command.fit
    calls = []

    def killed(*arguments, **given):
        calls.append(1)

        def stop(record):
            if len(calls) == 2 and record["epoch"] == 2:
                raise KeyboardInterrupt

        return plain(*arguments, **given, after_epoch=stop)

    monkeypatch.setattr(command, "fit", killed)
    assert run(tmp_path / "parts", *options) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    monkeypatch.setattr(command, "fit", plain)
    assert run(tmp_path / "parts", *options, "--resume") == 0
    assert table(tmp_path / "parts") == table(tmp_path / "whole")


def test_a_run_in_the_way_is_kept(tmp_path, capsys):
    options = ("--data", "moons", "--epochs", 1)
    assert run(tmp_path, *options) == 0
    before = (tmp_path / "seed-0.pt").read_bytes()
    assert run(tmp_path, *options) == 2
    assert "seed-0.pt is there: pass --resume, or another --out" in capsys.readouterr().err
    assert (tmp_path / "seed-0.pt").read_bytes() == before
    assert run(tmp_path, *options, "--seed", 0, "--batch-size", 8, "--resume") == 2
    assert "batch_size 32 (now 8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "other", "message"),
    [
        (("--data", "moons"), ("--data", "moons", "--method", "none"), "domain_weight 1.0 (now"),
        (("--data", "moons"), ("--data", "moons", "--method", "cdan"), "model 'DANN' (now"),
        (("--data", "moons"), ("--data", "moons", "--weight", 3), "domain_weight 1.0 (now 3.0)"),
        (("--data", "moons"), ("--data", "moons", "--rate", 0.001), "lr [0.1] (now [0.001])"),
        (("--data", "moons"), ("--data", "moons", "--scale", 2), "schedule high 1.0 (now 2.0)"),
        (
            ("--data", "digits", "--shift", "rotated"), ("--data", "digits", "--shift", "blended"),
            "target checksum of the data",
        ),
    ],
)  # fmt: skip
def test_resume_refuses_what_another_command_trained(tmp_path, capsys, first, other, message):
    assert run(tmp_path, *first, "--epochs", 1) == 0
    before = (tmp_path / "metrics.csv").read_bytes()
    assert run(tmp_path, *other, "--epochs", 1, "--resume") == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_epochs_are_added_to_a_run_of_constant_λ(tmp_path):
    options = ("--data", "moons", "--schedule", "constant")
    assert run(tmp_path / "whole", *options, "--epochs", 3) == 0
    assert run(tmp_path / "parts", *options, "--epochs", 1) == 0
    assert run(tmp_path / "parts", *options, "--epochs", 3, "--resume") == 0
    assert table(tmp_path / "parts") == table(tmp_path / "whole")


def test_epochs_are_added_to_a_run_without_a_reversal(tmp_path):
    options = ("--data", "moons", "--method", "none")
    assert run(tmp_path / "whole", *options, "--epochs", 3) == 0
    assert run(tmp_path / "parts", *options, "--epochs", 1) == 0
    assert run(tmp_path / "parts", *options, "--epochs", 3, "--resume") == 0
    assert table(tmp_path / "parts") == table(tmp_path / "whole")


def test_a_diverging_run_says_where_and_what_to_try(tmp_path, capsys):
    assert run(tmp_path, "--data", "moons", "--epochs", 3, "--rate", 1e30) == 1
    said = capsys.readouterr().err
    assert "at step" in said and "not finite" in said and "smaller --rate" in said


def test_a_seed_that_diverges_leaves_what_the_others_gave(tmp_path, capsys, monkeypatch):
    plain = command.load

    def load(options, seed):
        data = plain(options, seed)
        if seed == 0:
            data.source[0][3] = math.nan
        return data

    monkeypatch.setattr(command, "load", load)
    assert run(tmp_path, "--data", "moons", "--epochs", 2, "--seeds", 2) == 1
    said = capsys.readouterr()
    assert "seed 0: at step" in said.err and "1 seed" in said.out
    assert {row["seed"] for row in table(tmp_path)} == {"1"}
    assert all((tmp_path / name).stat().st_size for name in ("curves.png", "embedding.png"))


def test_a_target_whose_labels_came_later_is_scored_from_then_on(tmp_path, files, capsys):
    source, target = files
    options = ("--source", source, "--target", target, "--epochs", 2, "--resume")
    assert run(tmp_path / "run", *options) == 0
    assert "seed-0.pt: seed 0 starts anew" in capsys.readouterr().out
    x = np.load(target)["x"]
    saved(target, x=x, y=np.arange(40) % 2)
    assert run(tmp_path / "run", *options, "--seeds", 2) == 0
    printed = capsys.readouterr().out
    assert "seed 0 starts" not in printed and "seed 1 starts anew" in printed
    rows = table(tmp_path / "run")
    assert [row["seed"] for row in rows] == ["0", "0", "1", "1"]
    assert not rows[0]["target_accuracy"] and float(rows[3]["target_accuracy"]) >= 0


@pytest.mark.parametrize("below", ["file", "link"])
def test_a_folder_that_cannot_be_made_gets_a_sentence(tmp_path, capsys, below):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    folder = tmp_path / "file" / "x" if below == "file" else tmp_path / "link"
    assert run(folder, "--data", "moons") == 2
    said = capsys.readouterr().err
    assert "cannot be made a folder" in said and ("is a link" in said) == (below == "link")


def test_a_missing_package_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(command.NEEDED, "no_such_module", "no-such-package")
    assert run(tmp_path / "run", "--data", "moons") == 2
    assert 'train needs no-such-package: pip install "pyrevgrad[train]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_gets_what_follows_it(monkeypatch):
    given = []
    monkeypatch.setattr(adaptation, "main", lambda arguments: given.append(arguments) or 5)
    assert __main__.main(["train", "--data", "moons", "--help"]) == 5
    assert given == [["--data", "moons", "--help"]]


# What is refused.

X, Y = np.zeros((8, 3)) + np.arange(8)[:, None], np.arange(8) % 2
BAD_ARRAYS = [
    ({"y": Y}, {}, "has no array 'x'; it has y"),
    ({"x": X}, {}, "has no array 'y'; it has x"),
    ({"x": X, "y": Y[:5]}, {}, r"y has shape \(5,\) for 8 samples"),
    ({"x": X, "y": Y[:, None]}, {}, r"y has shape \(8, 1\)"),
    ({"x": X, "y": Y + 0.5}, {}, "y holds float64, and must hold integers"),
    ({"x": X, "y": Y - 1}, {}, "y holds -1, and classes begin at 0"),
    ({"x": X, "y": Y * 0}, {}, "y holds one class alone"),
    ({"x": X[:, 0], "y": Y}, {}, r"x has shape \(8,\); it must be features"),
    ({"x": X[:0], "y": Y[:0]}, {}, r"x has shape \(0, 3\), too few samples"),
    ({"x": X.astype(str), "y": Y}, {}, "must hold numbers"),
    ({"x": np.array([None] * 8), "y": Y}, {}, "is no .npz file that can be read"),
    ({"x": np.where(X == 3, np.nan, X), "y": Y}, {}, "3 values of x are NaN or infinite"),
    ({"x": X + 1e300 * (X == 3), "y": Y}, {}, "3 values of x are beyond float32"),
    ({"x": (-1) ** X * 3e38, "y": Y}, {}, "over its deviation, is beyond float32"),
    ({"x": X * 1e-30, "y": Y}, {"x": X * 1e30}, "target.npz: x, less the source's mean"),
    ({"x": X, "y": Y * 10**9}, {}, "y holds 1000000000, and at most 65536 classes"),
    ({"x": X, "y": Y.astype("uint64") << 63}, {}, "y holds 9223372036854775808, and at most"),
    ({"x": np.zeros((8, 9, 9, 3)), "y": Y}, {}, "with channels last; use x.transpose"),
    ({"x": X, "y": Y}, {"x": X[:, :2]}, r"of shape \(3,\) and .* of shape \(2,\)"),
    ({"x": X, "y": Y}, {"x": X, "y": Y + 1}, "class 2 has no sample in .* the target has 4"),
    ({"x": X, "y": Y + 1}, {"x": X, "y": Y}, "class 0 has no sample in .* the target has 4"),
    ({"x": X, "y": Y * 2}, {"x": X, "y": Y}, "class 1 has no sample in .* the target has 4"),
    ({"x": X, "y": Y}, {"y": Y}, "has no array 'x'"),
]


@pytest.mark.parametrize(("source", "target", "message"), BAD_ARRAYS)
def test_wrong_arrays_get_a_sentence(tmp_path, source, target, message):
    first = saved(tmp_path / "source.npz", **source)
    second = saved(tmp_path / "target.npz", **(target or {"x": X}))
    with pytest.raises(DataError, match=message):
        arrays.load(first, second, 0)


def test_numbers_that_are_no_samples_class_are_warned_of(tmp_path):
    x, labels = np.random.default_rng(0).normal(size=(9, 3)), [0, 7, 14]
    path = saved(tmp_path / "gaps.npz", x=x, y=np.repeat(labels, 3))
    empty = len(set(range(15)) - set(labels))
    with pytest.warns(UserWarning, match=f"{empty} of the classes 0 to 14 have no sample, class 1"):
        assert arrays.load(path, path, 0).classes == 15


def test_a_file_that_is_none_is_said(tmp_path, capsys):
    good = saved(tmp_path / "good.npz", x=X, y=Y)
    text = tmp_path / "text.npz"
    text.write_text("x, y")
    single = tmp_path / "single.npy"
    np.save(single, X)
    for path, message in (
        (tmp_path / "none.npz", "none.npz is not there"),
        (text, "text.npz is no .npz file that can be read"),
        (single, "single.npy is a single array; save both by numpy.savez"),
    ):
        assert run(tmp_path / "run", "--source", path, "--target", good) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --data, or --source and --target"),
        (("--data", "moons", "--source", "s.npz"), "give --data, or --source and --target"),
        (("--source", "s.npz"), "--source and --target go together"),
        (("--data", "mnist"), "invalid choice: 'mnist'"),
        (("--data", "moons", "--epochs", 0), "--epochs must be at least 1"),
        (("--data", "moons", "--batch-size", 0), "--batch-size must be at least 1"),
        (("--data", "moons", "--scale", "nan"), "--scale must be a finite number >= 0"),
        (("--data", "moons", "--scale", -1), "--scale must be a finite number >= 0"),
        (("--data", "moons", "--device", "meta"), "--device meta cannot be trained on"),
        (("--data", "moons", "--weight", -1), "--weight must be a finite number >= 0"),
        (("--data", "moons", "--seed", -1), "--seed must be at least 0"),
        (("--data", "moons", "--seed", 10**20), "must be at most 2147483646"),
        (("--data", "moons", "--seed", 2**31 - 2, "--seeds", 2), "must be at most 2147483646"),
        (("--data", "moons", "--patience", 0), "--patience must be at least 1"),
        (("--data", "moons", "--device", "abacus"), "--device abacus cannot be trained on"),
        (("--data", "moons", "--shift", "rotated"), "--shift without --data digits"),
        (("--source", "s", "--target", "t", "--shift", "blended"), "--shift without --data"),
        (("--data", "moons", "--method", "none", "--weight", 1), "--weight with --method none"),
        (
            ("--data", "moons", "--method", "none", "--sched", "ganin", "--scale", 2),
            "--scale, --schedule with --method none, which trains without a reversal",
        ),
    ],
)
def test_a_wrong_command_line_is_refused(tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "run", *options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
