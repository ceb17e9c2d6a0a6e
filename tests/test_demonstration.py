"""The demo: its data, its fair comparison, its maps, its timings and its exit statuses."""

from __future__ import annotations

import subprocess
import sys

import numpy
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from scipy import ndimage
from sklearn.datasets import load_digits

import pyrevgrad
from pyrevgrad import demonstration
from pyrevgrad.demonstration import digits, maps, summary, timing, training

FILES = ("curves.png", "maps.png", "timings.png", "summary.txt")


@pytest.fixture(scope="module")
def data():
    return digits.load(seed=3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(data, **changes):
    options = {"reversal": True, "seed": 0, "settings": training.Settings(epochs=1), **changes}
    return training.train(data.source.flat, data.source.labels, data.target.flat, **options)


def weights(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def accuracies(source, target):
    return training.Accuracies([source], [target], [target], [0.5])


def outcome(data, gain, control=0.96):
    settings = training.Settings()
    plain, adapted = accuracies(control, 0.3), accuracies(control, 0.3 + gain)
    return summary.Outcome([0], data, settings, [plain], [adapted])


def test_a_quarter_turn_is_counter_clockwise():
    images = torch.rand(3, 8, 8)
    torch.testing.assert_close(digits.rotate(images, 90), torch.rot90(images, 1, (1, 2)))


def test_rotation_agrees_with_scipy():
    images = torch.rand(4, 8, 8)
    expected = ndimage.rotate(
        images.numpy(), 40, axes=(2, 1), reshape=False, order=1, mode="grid-constant"
    )
    assert numpy.allclose(digits.rotate(images, 40).numpy(), expected, atol=1e-5)


def test_rotation_keeps_the_range():
    turned = digits.rotate(torch.rand(50, 8, 8), 40)
    assert turned.min() >= 0
    assert turned.max() <= 1


def test_no_image_is_in_two_parts(data):
    parts = (data.source, data.source_held_out, data.target, data.target_unseen)
    together = torch.cat([part.indices for part in parts])
    assert together.sort().values.tolist() == list(range(1797))


def test_parts_hold_the_published_digits_and_only_the_target_is_turned(data):
    published = load_digits()
    upright = torch.tensor(published.images[data.source.indices], dtype=torch.float32) / 16
    assert torch.equal(data.source.images, upright)
    turned = ndimage.rotate(
        published.images[data.target.indices] / 16,
        40,
        axes=(2, 1),
        reshape=False,
        order=1,
        mode="grid-constant",
    )
    assert numpy.allclose(data.target.images.numpy(), turned, atol=1e-5)
    for part in (data.source, data.source_held_out, data.target, data.target_unseen):
        assert part.labels.tolist() == published.target[part.indices].tolist()


def test_another_seed_is_another_split(data):
    assert not torch.equal(digits.load(seed=4).source.indices, data.source.indices)


def test_both_trainings_start_from_the_same_weights(data):
    plain, adapted = train(data, reversal=False), train(data, reversal=True)
    for kept in ("classifiers", "domain_heads"):
        first, second = getattr(plain, kept)[0], getattr(adapted, kept)[0]
        assert all(map(torch.equal, weights(first), weights(second)))


def test_without_reversal_the_target_teaches_the_classifier_nothing(data):
    ours = train(data, reversal=False)
    noise = torch.rand_like(data.target.flat)
    theirs = training.train(
        data.source.flat,
        data.source.labels,
        noise,
        reversal=False,
        seed=0,
        settings=training.Settings(epochs=1),
    )
    for mine, other in zip(weights(ours.classifier), weights(theirs.classifier), strict=True):
        torch.testing.assert_close(mine, other)


def test_with_reversal_the_target_changes_the_classifier(data):
    plain, adapted = train(data, reversal=False), train(data, reversal=True)
    pairs = zip(weights(plain.classifier), weights(adapted.classifier), strict=True)
    assert any((mine - other).abs().max() > 1e-3 for mine, other in pairs)


def test_training_leaves_the_global_random_state_alone(data):
    before = torch.get_rng_state()
    train(data)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_rule_leaves_the_values_alone(data):
    classifier = training.build_classifier()
    pixels = data.source.flat[:20]
    for rule in maps.RULES.values():
        assert torch.equal(maps.with_rule(classifier, rule)(pixels), classifier(pixels))


@pytest.mark.parametrize("name", ["EXACT", "GUIDED", "DECONVNET"])
def test_map_is_the_gradient_written_out_by_hand(data, name):
    classifier = training.build_classifier().double()
    images = data.source.images[:30].double()
    classes = torch.arange(30) % 10
    layers = [classifier[0], classifier[2], classifier[4]]
    values, inputs = images.flatten(1), []
    for layer in layers[:2]:
        inputs.append(values @ layer.weight.T + layer.bias)
        values = inputs[-1].clamp_min(0)
    g = layers[2].weight[classes]
    for layer, x in zip(layers[1::-1], inputs[::-1], strict=True):
        blocked = torch.zeros_like(x, dtype=torch.bool)
        if name in ("EXACT", "GUIDED"):
            blocked |= x <= 0
        if name in ("GUIDED", "DECONVNET"):
            blocked |= g <= 0
        g = g.masked_fill(blocked, 0) @ layer.weight
    network = maps.with_rule(classifier.float(), maps.RULES[name])
    drawn = maps.input_gradient(network, maps.RULES[name], images.float(), classes)
    assert drawn.shape == (30, 8, 8)
    torch.testing.assert_close(drawn, g.reshape(30, 8, 8).float(), rtol=1e-4, atol=1e-6)


def test_maps_hold_one_row_per_digit_and_rule(data):
    drawn = maps.draw_from(
        training.build_classifier(), data.target_unseen.images, data.target_unseen.labels
    )
    assert drawn.labels.tolist() == list(range(10))
    assert drawn.images.shape == (10, 8, 8)
    assert {name: map_.shape for name, map_ in drawn.gradients.items()} == dict.fromkeys(
        ("EXACT", "GUIDED", "DECONVNET"), (10, 8, 8)
    )


def test_maps_of_equal_classes_have_cosine_one(data):
    classifier = training.build_classifier()
    with torch.no_grad():
        classifier[4].weight.copy_(classifier[4].weight[:1].abs().expand(10, -1))
    cosine = maps.class_cosine(classifier, pyrevgrad.GUIDED, data.source.images[:20])
    assert cosine == pytest.approx(1)


def test_every_contestant_is_timed_at_every_size():
    times = timing.measure([64, 256], rounds=2)
    assert set(times.microseconds) == set(timing.contestants())
    assert all(len(values) == 2 and min(values) > 0 for values in times.microseconds.values())


def test_ratio_is_slow_over_fast():
    times = timing.Timings([8, 16], {"a": [6.0, 9.0], "b": [2.0, 3.0]}, rounds=1, threads=1)
    assert times.ratio("a", "b") == [3.0, 3.0]


def test_contestants_that_disagree_are_not_timed(monkeypatch):
    wrong = {**timing.contestants(), timing.FUSED_GUIDED: torch.relu}
    monkeypatch.setattr(timing, "contestants", lambda: wrong)
    with pytest.raises(RuntimeError, match="'guided relu, fused' and 'guided relu, eager idiom'"):
        timing.measure([64], rounds=1)


def test_a_gain_below_the_promise_is_said(data):
    assert summary.shortfall(outcome(data, gain=0.19)) == (
        "GradientReversal gained 19.0 points on the target, "
        "below the 20 points that the demo promises."
    )
    assert summary.shortfall(outcome(data, gain=0.21)) is None


def test_a_weak_control_is_said(data):
    assert summary.shortfall(outcome(data, gain=0.3, control=0.94)) == (
        "The source-only control reached 94.0 % on held-out source, "
        "below the 95 % that makes the comparison fair."
    )


def test_a_folder_that_cannot_be_made_gets_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert demonstration.main(["--quick", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be made a folder: Not a directory" in capsys.readouterr().err


def test_an_interrupt_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demonstration, "train_all", interrupted)
    assert demonstration.main(["--quick", "--out", str(tmp_path / "demo")]) == 130
    assert capsys.readouterr().err == "interrupted; another run begins anew\n"


def test_a_missing_package_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(demonstration.NEEDED, "no_such_module", "no-such-package")
    assert demonstration.main(["--out", str(tmp_path / "demo")]) == 2
    said = capsys.readouterr().err
    assert said == 'The demo needs no-such-package: pip install "pyrevgrad[demo]"\n'
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--out", __file__], "--out must be a folder"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        demonstration.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_quick_run_leaves_four_files_and_says_that_it_is_quick(tmp_path, capsys):
    assert demonstration.main(["--quick", "--out", str(tmp_path / "demo")]) == 0
    for name in FILES:
        assert (tmp_path / "demo" / name).stat().st_size > 0
    written = (tmp_path / "demo" / "summary.txt").read_text(encoding="utf-8")
    assert demonstration.QUICK_VERDICT in written
    assert written in capsys.readouterr().out


def test_a_run_that_misses_its_promise_exits_with_one(tmp_path, monkeypatch, capsys):
    short = demonstration.Amount(epochs=1, powers=range(6, 7), rounds=1)
    monkeypatch.setattr(demonstration, "FULL", short)
    assert demonstration.main(["--seeds", "1", "--out", str(tmp_path)]) == 1
    assert "below the" in capsys.readouterr().err


def test_importing_the_package_imports_nothing_of_the_demo():
    code = (
        "import sys, pyrevgrad; "
        "print([name for name in ('matplotlib', 'sklearn', 'pyrevgrad.demonstration') "
        "if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert printed.stdout.strip() == "[]", printed.stderr
