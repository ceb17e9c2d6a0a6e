"""fit: what a step does, the order of batches, its history, and what it refuses."""

import builtins
import copy
import itertools
import math
import random
import sys

import numpy as np
import pytest
import torch
from adversaries import Seen, data, network, same, train, weights
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyrevgrad
from pyrevgrad.adversarial import DANN, GaninSchedule, LinearSchedule, evaluate, fit
from pyrevgrad.nn import Activation

# Steps.


def test_a_step_is_that_of_the_plain_loop():
    """Batches of everything, so that no order matters: SGD by hand gives the same weights."""
    (x, y), target = data(16, 16)
    order_free = network(GaninSchedule(4)).double()
    by_hand = copy.deepcopy(order_free)
    fit(order_free, (x.double(), y), target.double(), epochs=4, batch_size=16, progress=False)
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for step in range(4):
        by_hand.reversal.scale = 2 / (1 + math.exp(-10 * step / 4)) - 1
        rate = 0.01 / (1 + 10 * step / 4) ** 0.75
        by_hand.zero_grad()
        by_hand(x.double(), y, target.double()).loss.backward()
        with torch.no_grad():
            for p, v in zip(by_hand.parameters(), velocity, strict=True):
                v.mul_(0.9).add_(p.grad)
                p -= rate * v
    for ours, theirs in zip(order_free.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_clipped_step_has_the_gradient_of_that_norm():
    """One step of plain descent moves the weights by rate · norm, in the gradient's direction."""
    (x, y), target = data(16, 16)
    model = network().double()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    model(x.double(), y, target.double()).loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert gradient.norm() > 0.01
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    fit(
        model, (x.double(), y), target.double(), epochs=1, batch_size=16, optimizer=optimizer,
        max_grad_norm=0.01, progress=False,
    )  # fmt: skip
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    # The norm is divided by with 1e-6 added to it, as PyTorch does.
    wanted = -0.5 * 0.01 * gradient / gradient.norm()
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-12)


def test_gradients_below_the_norm_are_as_they_were():
    plain, clipped = network(), network()
    clipped.load_state_dict(plain.state_dict())
    train(plain, epochs=1)
    train(clipped, epochs=1, max_grad_norm=1e6)
    assert same(plain, clipped)


@pytest.mark.parametrize("wrong", [0, -1.0, math.inf, math.nan, "1", True])
def test_a_norm_that_cannot_clip_is_refused(wrong):
    with pytest.raises((ValueError, TypeError), match="max_grad_norm must"):
        train(network(), max_grad_norm=wrong)


def test_the_history_says_what_happened():
    schedule = LinearSchedule(8)
    model = network(schedule, record_norm=True)
    source, target = data()
    history = train(
        model, source, target, epochs=2, validation=source,
        scores={"target": (target, source[1][:30])},
    )  # fmt: skip
    first, last = history.epochs
    assert (first["epoch"], first["step"], last["epoch"], last["step"]) == (1, 4, 2, 8)
    assert (first["scale"], last["scale"]) == (0.5, 1.0)
    assert last["learning_rate"] == pytest.approx(0.01 / 11**0.75)
    assert last["loss"] == pytest.approx(last["label_loss"] + last["domain_loss"])
    assert last["gradient_norm"] > 0 and 0 <= last["domain_accuracy"] <= 1
    assert last["validation_accuracy"] == evaluate(model, source).accuracy
    assert last["target_accuracy"] == evaluate(model, (target, source[1][:30])).accuracy
    assert not history.stopped_early


@pytest.mark.parametrize(("kind", "most"), [(GaninSchedule, 1000), (LinearSchedule, 25)])
def test_a_schedule_that_the_run_leaves_far_from_its_end_is_warned_of(kind, most):
    """12 steps: Ganin's λ reaches tanh(5 · 12 / 1000), the line 12 / 25."""
    reached = {1000: math.tanh(0.06), 25: 0.48}[most]
    sentence = f"λ ends at {reached:.3g} of 1: the run ends at step 12 of .* max_steps is {most}"
    with pytest.warns(UserWarning, match=sentence) as said:
        train(network(kind(most)))
    assert len(said) == 1 and said[0].filename.endswith("adversaries.py")


@pytest.mark.parametrize(
    "schedule", [LinearSchedule(24), LinearSchedule(3), GaninSchedule(12, gamma=0.1)]
)
def test_a_schedule_that_comes_halfway_is_not_warned_of(schedule):
    train(network(schedule))


def test_training_learns_the_labels():
    model = network(0.1)
    history = train(model, epochs=30, optimizer=torch.optim.Adam(model.parameters(), 0.01))
    losses = [record["label_loss"] for record in history.epochs]
    assert losses[-1] < 0.6 * losses[0] and all(map(math.isfinite, losses))
    assert evaluate(model, data()[0]).accuracy > 0.85


def numbered(n, start=0):
    x = torch.arange(start, start + n, dtype=torch.float32)[:, None]
    return x, torch.zeros(n, dtype=torch.long)


def seen(source, target, **options):
    watch = Seen()
    model = DANN(watch, nn.Linear(1, 2), nn.Linear(1, 1), together=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train(model, source, target, batch_size=4, optimizer=optimizer, **options)
    return watch.rows[::2], watch.rows[1::2]


def test_an_epoch_is_a_pass_over_the_source_and_the_target_begins_again():
    sources, targets = seen(numbered(10), numbered(6, 100)[0], epochs=2)
    assert [len(rows) for rows in sources] == [4, 4, 2] * 2
    for epoch in (sources[:3], sources[3:]):
        assert sorted(itertools.chain(*epoch)) == list(range(10))
    assert sources[:3] != sources[3:]
    for passed in (targets[:2], targets[2:4], targets[4:]):
        assert sorted(itertools.chain(*passed)) == list(range(100, 106))


def test_the_seed_decides_on_the_order():
    one, again, other = (seen(numbered(10), numbered(6)[0], seed=s) for s in (1, 1, 2))
    assert one == again and one[0] != other[0] and one[1] != other[1]


class Items(Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.full((1,), float(i)), 0


@pytest.mark.parametrize("form", ["arrays", "dataset", "items", "loader", "labelled target"])
def test_every_form_of_data_is_taken(form):
    x, y = numbered(10)
    source, target = {
        "arrays": ((x.numpy(), y.numpy()), x.numpy()),
        "dataset": (TensorDataset(x, y), TensorDataset(x)),
        "items": (Items(10), Items(10)),
        "loader": (DataLoader(Items(10), 4), DataLoader(TensorDataset(x), 4)),
        "labelled target": ((x, y), (x, y)),
    }[form]
    sources, targets = seen(source, target, epochs=1)
    assert sorted(itertools.chain(*sources)) == sorted(itertools.chain(*targets)) == list(range(10))


def test_several_domains_are_lists():
    x, y = numbered(8)
    model = DANN(nn.Identity(), nn.Linear(1, 2), nn.Linear(1, 4))
    history = train(model, [(x, y), (x + 9, y)], [x, x + 3], epochs=1, batch_size=4)
    assert history.epochs[0]["step"] == 2


def test_modules_stay_in_their_mode():
    model = network()
    model.features[1].eval()
    before = model.features[1].running_mean.clone()
    train(model, validation=data()[0])
    assert not model.features[1].training and model.features[0].training and model.training
    assert torch.equal(model.features[1].running_mean, before)


def test_all_random_states_are_as_before():
    model = network(dropout=0.5, seed=0)
    # States that no training before left behind.
    random.seed(4321)
    np.random.seed(4321)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train(model)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_one_seed_is_one_result():
    models = [network(dropout=0.5) for _ in range(3)]
    for state, (model, seed) in enumerate(zip(models, (5, 5, 6), strict=True)):
        torch.manual_seed(state)
        train(model, seed=seed)
    assert same(models[0], models[1]) and not same(models[0], models[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_reference_and_the_fused_backend_give_the_same_curves(dtype):
    (x, y), target = data()
    histories = []
    for backend in ("reference", "native"):
        try:
            with pyrevgrad.backend(backend):
                torch.manual_seed(0)
                model = DANN(
                    nn.Sequential(nn.Linear(4, 8), Activation("relu"), nn.Linear(8, 8)),
                    nn.Sequential(Activation("leaky_relu"), nn.Linear(8, 2)),
                    nn.Sequential(Activation("relu"), nn.Linear(8, 1)),
                    scale=GaninSchedule(20),
                ).to(dtype)
                histories.append(train(model, (x.to(dtype), y), target.to(dtype), epochs=5))
        except pyrevgrad.BackendError:
            pytest.skip("the native library is not built here")
    for ours, theirs in zip(histories[0].epochs, histories[1].epochs, strict=True):
        assert ours == (theirs if dtype == torch.float64 else pytest.approx(theirs, rel=1e-4))


# What is refused.

(X, Y), T = data()
BAD = [
    (lambda: train(network(), (X, Y + 1)), ValueError, "label 2 is out of range"),
    (lambda: train(network(), validation=(X, Y + 1)), ValueError, "label 2 is out of range"),
    (lambda: train(network(), (X, Y[:9])), ValueError, "source: 50 inputs come with 9 labels"),
    (lambda: train(network(), (X[:0], Y[:0])), ValueError, "source has no sample"),
    (lambda: train(network(), target=T[:0]), ValueError, "target has no sample"),
    (lambda: train(network(), target=[]), ValueError, "target has no domain"),
    (lambda: train(network(), X), TypeError, r"source must be \(x, y\) of inputs and labels"),
    (lambda: train(network(), target=3), TypeError, "target must be tensors x, a Dataset or a"),
    (lambda: train(network(), target=iter([T])), TypeError, "good for one pass"),
    (lambda: train(network(), DataLoader(TensorDataset(X), 8)), TypeError, r"must be \(x, y\)"),
    (lambda: train(network(), target=DataLoader([], 8)), ValueError, "target has no sample"),
    (lambda: train(network(), target=T[:, :3]), ValueError, "different shapes"),
    (lambda: train(nn.Linear(4, 2)), TypeError, "fit trains a DANN, not Linear"),
    (lambda: train(network(), epochs=0), ValueError, "epochs must be an int >= 1, got 0"),
    (lambda: train(network(), batch_size=1.5), ValueError, "batch_size must be an int >= 1"),
    (lambda: train(network(), seed=-1), ValueError, "seed must be an int >= 0"),
    (lambda: train(network(), seed=2**64), ValueError, "seed must be at most 18446744073709551615"),
    (lambda: train(network(), epochs=True), ValueError, "epochs must be an int >= 1"),
    (lambda: train(network(), validation=[(X, Y)]), TypeError, "validation is a list; a score"),
    (lambda: evaluate(network(), [(X, Y), (X, Y)]), TypeError, "data is a list; a score is of one"),
    (lambda: evaluate(nn.Linear(4, 2), (X, Y)), TypeError, "evaluate takes a DANN, not Linear"),
    (lambda: train(network(), patience=2), ValueError, "need a validation to go by"),
    (lambda: train(network(), keep_best=True), ValueError, "need a validation to go by"),
    (lambda: train(network(), validation=(X, Y), patience=0), ValueError, "patience must be an"),
    (
        lambda: train(network(), list(zip(X, Y, strict=True))), TypeError,
        r"source\[0\] is one sample, and a list is of domains: a domain is tensors \(x, y\) of",
    ),
    (
        lambda: train(network(), (X.to_sparse(), Y)), TypeError,
        "source is a sparse_coo tensor, whose samples cannot be picked .* give a Dataset",
    ),
    (
        lambda: train(network(), target=torch.nested.nested_tensor([X, T], layout=torch.jagged)),
        TypeError, "target is a nested tensor",
    ),
    (lambda: train(network(), [(X[0], 1), (X[1], 0)]), TypeError, r"source\[0\] is one sample"),
    (lambda: train(network(), [{"x": x} for x in X]), TypeError, r"source\[0\] is one sample"),
    (lambda: train(network(), target=[{"x": T}]), TypeError, "target is one sample, and a list is"),
    (lambda: train(network(), scheduler=object()), ValueError, "a scheduler comes with the opt"),
    (lambda: train(network(), scores={"label": (X, Y)}), ValueError, "cannot be called 'label'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_bad_input_gets_a_sentence(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_the_progress_bar_counts_steps_and_names_the_extra_if_missing(monkeypatch, capsys):
    train(network(), progress=True)
    assert "12/12" in capsys.readouterr().err
    plain = builtins.__import__

    def without(name, *rest, **options):
        if name == "tqdm":
            raise ImportError
        return plain(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "pyrevgrad\[train\]"'):
        train(network(), progress=True)
    train(network(), progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("installed", [True, False])
def test_the_bar_is_shown_by_default_where_there_is_one(monkeypatch, capsys, installed):
    if installed:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    source, target = data()
    fit(network(), source, target, epochs=3, batch_size=16)
    said = capsys.readouterr().err
    assert "12/12" in said if installed else said == ""


@pytest.mark.parametrize("sizes", [(50, 7), (50, 1)])
def test_ignored_labels_count_for_nothing_in_a_score_however_they_fall_into_batches(sizes):
    (x, y), _ = data()
    y = y.clone()
    y[::3], y[30:] = -100, -100
    model = network()
    model.eval()
    kept = y != -100
    wanted = torch.nn.functional.cross_entropy(model.predict(x[kept]), y[kept]).item()
    for size in sizes:
        found = evaluate(model, (x, y), batch_size=size)
        assert found.loss == pytest.approx(wanted, rel=1e-5)
        assert found.accuracy == evaluate(model, (x[kept], y[kept])).accuracy
    none = evaluate(model, (x, torch.full_like(y, -100)))
    assert math.isnan(none.loss) and math.isnan(none.accuracy)


def normalised(**options):
    head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))
    return DANN(nn.Linear(4, 8), head, nn.Linear(8, 1), **options)


def test_a_last_batch_of_one_sample_is_left_out_where_normalisation_would_see_it_alone():
    (x, y), target = data(33, 33)
    assert train(normalised(), (x, y), target, epochs=2).epochs[-1]["step"] == 4
    model = network(together=False)
    assert train(model, (x, y), target, epochs=2).epochs[-1]["step"] == 4
    # Where it is never alone, and where nothing is trained, it stays.
    assert train(network(), (x, y), target, epochs=2).epochs[-1]["step"] == 6
    assert train(normalised().eval(), (x, y), target, epochs=2).epochs[-1]["step"] == 6


def test_a_loaders_batch_of_one_sample_gets_a_sentence():
    (x, y), target = data(33, 33)
    with pytest.raises(ValueError, match=r"got one sample, .* or drop_last=True in a DataLoader"):
        train(normalised(), DataLoader(TensorDataset(x, y), 16), target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float64_of_numpy_takes_the_models_dtype(dtype):
    (x, y), target = data()
    arrays = x.double().numpy(), y.numpy()
    ours, theirs = network().to(dtype), network().to(dtype)
    found = train(ours, arrays, target.double().numpy(), validation=arrays)
    own = x.to(dtype), y
    assert found == train(theirs, own, target.to(dtype), validation=own)
    assert same(ours, theirs) and evaluate(ours, arrays) == evaluate(theirs, own)
    ours.eval(), theirs.eval()
    assert torch.equal(ours.predict(arrays[0]), theirs.predict(own[0]))


def test_whole_numbers_of_numpy_are_taken():
    one, other = network(GaninSchedule(np.int64(9))), network(GaninSchedule(9))
    options = {"epochs": 2, "batch_size": 8, "seed": 3}
    train(one, **{name: np.int64(value) for name, value in options.items()})
    train(other, **options)
    assert same(one, other)


def test_the_largest_seed_is_taken():
    train(network(), epochs=1, seed=2**64 - 1)


def test_evaluate_weighs_batches_by_their_samples():
    (x, y), _ = data()
    model = network()
    whole = evaluate(model, (x, y), batch_size=50)
    parts = evaluate(model, (x, y), batch_size=7)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.accuracy == whole.accuracy
    assert model.training


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_off_are_said_before_the_first_step(off):
    model = network()
    before = weights(model)
    with off(), pytest.raises(ValueError, match="gradients are off where fit is called"):
        train(model)
    assert all(map(torch.equal, weights(model), before))


@pytest.mark.parametrize("scale", [-0.5, LinearSchedule(12, high=-1.0)])
def test_a_scale_below_zero_is_warned_of(scale):
    with pytest.warns(UserWarning, match="λ is or becomes -.*: below 0 it undoes the reversal"):
        train(network(scale))
