"""fit over interruptions: bit-equal continuation, whole files, patience, a loss that is NaN."""

import io
import math
import pickle

import numpy as np
import pytest
import torch
from adversaries import Killed, data, kill_after, network, same, train, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyrevgrad.adversarial import DivergedError, GaninSchedule, evaluate

# Continuing.


OPTIMIZERS = {
    "paper": lambda model: {},
    "adam": lambda model: {"optimizer": torch.optim.Adam(model.parameters(), 1e-3)},
    "sgd with cosine": lambda model: _with_cosine(torch.optim.SGD(model.parameters(), 0.1, 0.9)),
}
FORMS = {
    "tensors": lambda: data(),
    "loaders": lambda: (
        DataLoader(TensorDataset(*data()[0]), 16, shuffle=True),
        DataLoader(
            TensorDataset(data()[1]), 16, shuffle=True, generator=torch.Generator().manual_seed(3)
        ),
    ),
}


def _with_cosine(optimizer):
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
    return {"optimizer": optimizer, "scheduler": scheduler}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_training_continues_bit_for_bit(tmp_path, optimizer, form):
    def start(**options):
        model = network(GaninSchedule(24), dropout=0.5, record_norm=True)
        options = {"epochs": 6, "validation": data()[0], **OPTIMIZERS[optimizer](model), **options}
        source, target = FORMS[form]()
        return model, lambda: train(model, source, target, **options)

    whole, run = start()
    wanted = run()
    path = tmp_path / "deep" / "run.pt"
    for stop in (2, 3):
        _, run = start(checkpoint=path, resume=True, after_epoch=kill_after(stop))
        with pytest.raises(Killed):
            run()
        torch.manual_seed(1000 + stop)
    model, run = start(checkpoint=path, resume=True)
    history = run()
    assert same(model, whole)
    # The norm of the last reversed gradient is no part of a file, and every epoch makes its own.
    assert history == wanted
    assert model.reversal.schedule.steps == 24
    assert [file.name for file in path.parent.iterdir()] == ["run.pt"]


def test_a_finished_training_is_not_trained_again(tmp_path):
    path = tmp_path / "run.pt"
    first = network()
    wanted = train(first, checkpoint=path)
    fresh = network(seed=7)
    assert train(fresh, checkpoint=path, resume=True) == wanted
    assert same(fresh, first)


def test_a_crash_while_saving_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        train(network(), checkpoint=path, epochs=2, after_epoch=kill_after(1))
    before = path.read_bytes()

    plain = torch.save

    def crash(content, file):
        if isinstance(file, io.BytesIO):
            return plain(content, file)
        file.write(b"half")
        raise Killed

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(Killed):
        train(network(), checkpoint=path, resume=True, epochs=2)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_a_file_in_the_way_is_not_overwritten(tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="pass resume=True to continue from it"):
        train(network(), checkpoint=path)
    with pytest.raises(ValueError, match="is no checkpoint that can be read"):
        train(network(), checkpoint=path, resume=True)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed 0 \(now 1\)"),
        ({"batch_size": 8}, r"batch_size 16 \(now 8\)"),
        ({"target": data(m=20)[1]}, r"target shapes \[\[30, 4\]\] \(now \[\[20, 4\]\]\)"),
    ],
)
def test_another_training_does_not_continue(tmp_path, change, message):
    path = tmp_path / "run.pt"
    train(network(), checkpoint=path)
    model = network(seed=3)
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        train(model, checkpoint=path, resume=True, **change)
    assert all(map(torch.equal, weights(model), before))


# Files.


def test_numbers_of_numpy_are_saved_as_pythons_own(tmp_path):
    path, model = tmp_path / "run.pt", network()

    def mine(record):
        record.update(mine=np.float64(record["epoch"]))
        if record["epoch"] == 2:
            raise Killed

    optimizer = torch.optim.SGD(model.parameters(), np.float64(0.1))
    with pytest.raises(Killed):
        train(model, checkpoint=path, after_epoch=mine, optimizer=optimizer)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), np.float64(0.1))
    found = train(model, checkpoint=path, resume=True, optimizer=optimizer).epochs
    assert (found[0]["mine"], type(found[0]["mine"])) == (1.0, float)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    path = tmp_path / "run.pt"
    message = r"look at what after_epoch adds to its record.*_reconstruct is none\)"

    def later_an_array(record):
        record["mine"] = 1.0 if record["epoch"] == 1 else np.zeros(3)

    with pytest.raises(ValueError, match=message):
        train(network(), checkpoint=path, after_epoch=later_an_array)
    good = torch.load(path, weights_only=True)
    assert len(good["epochs"]) == 1
    with pytest.raises(ValueError, match="look at what after_epoch adds to its record"):
        train(
            network(), checkpoint=path, resume=True, after_epoch=lambda r: r.update(mine=lambda: 0)
        )
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def never(record):
    raise AssertionError("an epoch was trained")


def test_a_checkpoint_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run.pt", "/proc/no/such/run.pt"):
        with pytest.raises(OSError, match=r"run\.pt cannot be written"):
            train(network(), checkpoint=path, after_epoch=never)
    for resume in (False, True):
        with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
            train(network(), checkpoint=tmp_path, resume=resume, after_epoch=never)


def test_a_file_of_an_earlier_version_is_named_as_such(tmp_path):
    path = tmp_path / "run.pt"
    train(network(), checkpoint=path)
    torch.save({**torch.load(path), "format": 1}, path)
    with pytest.raises(ValueError, match="of another version of pyrevgrad"):
        train(network(), checkpoint=path, resume=True)


# Stopping.


def test_patience_ends_a_training_whose_validation_stays():
    (x, y), _ = data()
    model = network(0.0)
    stuck = torch.optim.SGD(model.parameters(), lr=0.0)
    model.eval()
    history = train(model, epochs=20, validation=(x, y), patience=3, optimizer=stuck)
    assert history.stopped_early and len(history.epochs) == 4 and history.best_epoch == 0


def test_the_best_weights_are_kept_on_demand(tmp_path):
    (x, y), _ = data()
    for keep in (False, True):
        model = network(0.0)
        wild = torch.optim.SGD(model.parameters(), lr=2.0)
        history = train(
            model, epochs=6, validation=(x[:20], y[:20]), keep_best=keep, optimizer=wild,
            checkpoint=tmp_path / f"{keep}.pt",
        )  # fmt: skip
        losses = [record["validation_loss"] for record in history.epochs]
        best = min(losses)
        assert history.best_epoch == losses.index(best) and best < losses[-1]
        found = evaluate(model, (x[:20], y[:20])).loss
        assert found == pytest.approx(best if keep else losses[-1], rel=1e-6)


class Poison(nn.Module):
    """The identity until its `after`-th call; then NaN."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def forward(self, x):
        self.after -= 1
        return x if self.after >= 0 else x * math.nan


def test_a_nan_loss_stops_with_the_step_and_keeps_weights_and_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    model = network()
    model.domain_head.insert(0, Poison(6))
    with pytest.raises(DivergedError) as raised:
        train(model, checkpoint=path)
    error = raised.value
    assert (error.step, error.epoch, error.checkpoint) == (6, 1, path)
    said = "at step 7 (epoch 2, both counted from 1) the loss is not finite (label loss 0."
    assert said in str(error)
    assert f"the last good checkpoint, of the end of epoch 1, is {path}" in str(error)
    assert all(p.isfinite().all() for p in model.parameters())
    model.domain_head[0] = Poison(100)
    resumed = train(model, checkpoint=path, resume=True)
    assert [record["epoch"] for record in resumed.epochs] == [1, 2, 3]


def test_a_nan_without_a_checkpoint_says_so():
    model = network()
    model.domain_head.insert(0, Poison(0))
    with pytest.raises(DivergedError, match=r"at step 1 \(epoch 1, .* no checkpoint was asked for"):
        train(model)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    path = tmp_path / "run.pt"
    (x, y), target = data(16, 16)
    with pytest.raises(Killed):
        train(network(), (x, y), target, epochs=2, checkpoint=path, after_epoch=kill_after(1))
    good = path.read_bytes()
    model = network()
    model.features[0].weight.register_hook(lambda g: g * math.inf)
    with pytest.raises(DivergedError, match=r"the weights features\.0\.weight are not"):
        train(model, (x, y), target, epochs=2, checkpoint=path, resume=True)
    assert path.read_bytes() == good


def test_a_clipped_gradient_that_is_not_finite_leaves_the_weights_as_they_were():
    model = network()
    model.features[0].weight.register_hook(lambda g: g * math.inf)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(DivergedError, match=r"at step 1 \(.*the norm of the gradient is (nan|inf)"):
        train(model, max_grad_norm=1.0)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_ignored_labels_alone_are_named():
    (x, y), target = data()
    with pytest.raises(DivergedError, match="every label of the batch is ignored"):
        train(network(), (x, torch.full_like(y, -100)), target)


def test_resuming_without_a_checkpoint_is_an_error():
    source, target = data()
    with pytest.raises(ValueError, match="name its file by checkpoint="):
        train(network(), source, target, resume=True)


def test_a_divergence_in_the_first_epoch_says_that_nothing_was_written_yet(tmp_path):
    path, model = tmp_path / "run.pt", network()
    with pytest.raises(DivergedError, match=r"no checkpoint had been written to .*run\.pt"):
        train(model, (data()[0][0] * math.nan, data()[0][1]), checkpoint=path)


def test_a_diverged_error_passes_between_processes(tmp_path):
    error = DivergedError("at step 7", 6, 1, tmp_path / "run.pt")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DivergedError and str(again) == "at step 7"
    assert (again.step, again.epoch, again.checkpoint) == (6, 1, tmp_path / "run.pt")


def test_an_infinite_λ_is_refused_before_training():
    with pytest.raises(ValueError, match="λ of the network's reversal is inf"):
        train(network(math.inf), after_epoch=never)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [True, False])
def test_a_run_continues_with_and_without_compiled_parts(tmp_path, first):
    def made(compiled):
        model = network()
        if compiled:
            model.features = torch.compile(model.features, backend="eager")
        return model

    source, _ = data()
    options = {"checkpoint": tmp_path / "run.pt", "validation": source, "keep_best": True}
    with pytest.raises(Killed):
        train(made(first), after_epoch=kill_after(2), **options)
    continued, whole = made(not first), made(False)
    train(continued, resume=True, **options)
    train(whole, validation=source, keep_best=True)
    for ours, theirs in zip(weights(continued), weights(whole), strict=True):
        torch.testing.assert_close(ours, theirs)
