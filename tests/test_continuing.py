"""What a resumed training must share with the one before, and what of its loaders is continued."""

import contextlib
import copy
import functools
import itertools

import pytest
import torch
from adversaries import Killed, Seen, data, kill_after, network, same, train, weights
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CyclicLR,
    ExponentialLR,
    OneCycleLR,
    SequentialLR,
)
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyrevgrad.adversarial import (
    CDAN,
    DANN,
    GaninLearningRate,
    GaninSchedule,
    LinearSchedule,
    fit,
)

(X, Y), T = data()


def sgd(rate=0.1, **options):
    return lambda model: {"optimizer": torch.optim.SGD(model.parameters(), rate, **options)}


def cosine(steps):
    def made(model):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "scheduler": scheduler}

    return made


def two_groups(rate, **options):
    def made(model):
        groups = [{"params": model.features.parameters(), "lr": rate, **options}]
        groups += [{"params": part.parameters()} for part in (model.label_head, model.domain_head)]
        return {"optimizer": torch.optim.SGD(groups, 0.1)}

    return made


def smoothed(label_smoothing):
    return functools.partial(nn.functional.cross_entropy, label_smoothing=label_smoothing)


def conditional(**options):
    torch.manual_seed(0)
    return CDAN(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(6, 1), **options)


def loader(n=50, size=10, **options):
    return DataLoader(TensorDataset(X[:n], Y[:n]), size, **options)


def batched(size):
    sampler = BatchSampler(RandomSampler(range(50)), size, drop_last=False)
    return DataLoader(TensorDataset(X[:50], Y[:50]), batch_sampler=sampler)


def weighted(first):
    return WeightedRandomSampler(torch.tensor([first] + [1.0] * 49), 50)


def scheduled(made):
    def options(model):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return {"optimizer": optimizer, "scheduler": made(optimizer)}

    return options


def in_sequence(optimizer, at, gamma=0.5):
    parts = [ConstantLR(optimizer, 0.1), ExponentialLR(optimizer, gamma)]
    return SequentialLR(optimizer, parts, [at])


def swapped_heads(model):
    parts = (model.features, model.domain_head, model.label_head)
    return {"optimizer": torch.optim.SGD([p for part in parts for p in part.parameters()], 0.1)}


def frozen_head():
    model = network()
    model.domain_head.requires_grad_(False)
    return model


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def options_of(options, model):
    return options(model) if callable(options) else dict(options)


#: The network and options of a training, and of one that is none of its continuations.
OTHERS = {
    "λ": (network, {}, lambda: network(2.0), {}, r"scale 0\.5 \(now 2\.0\)"),
    "schedule": (
        lambda: network(GaninSchedule(12)), {}, lambda: network(GaninSchedule(12, gamma=5)), {},
        r"schedule gamma 10\.0 \(now 5\.0\)",
    ),
    "kind of schedule": (
        lambda: network(GaninSchedule(12)), {}, lambda: network(LinearSchedule(12)), {},
        r"schedule 'GaninSchedule' \(now 'LinearSchedule'\)",
    ),
    "schedule or number": (
        lambda: network(GaninSchedule(12)), {}, network, {},
        r"schedule 'GaninSchedule' \(now None\)",
    ),
    "weight": (network, {}, lambda: network(domain_weight=3), {}, r"domain_weight 1\.0 \(now 3\.0"),
    "average": (
        network, {}, lambda: network(domain_average="samples"), {},
        r"domain_average 'domains' \(now 'samples'\)",
    ),
    "entropy": (
        conditional, {}, lambda: conditional(entropy=True), {}, r"entropy False \(now True\)"
    ),
    "rate": (network, sgd(), network, sgd(0.01), r"optimizer lr \[0\.1\] \(now \[0\.01\]\)"),
    "a group's rate": (
        network, two_groups(0.01), network, two_groups(0.02),
        r"optimizer lr \[0\.01, 0\.1, 0\.1\] \(now \[0\.02, 0\.1, 0\.1\]\)",
    ),
    "momentum": (
        network, sgd(), network, sgd(momentum=0.5), r"optimizer momentum 0 \(now 0\.5\)"
    ),
    "a group's momentum": (
        network, two_groups(0.01), network, two_groups(0.01, momentum=0.9),
        r"optimizer momentum 0 \(now \[0\.9, 0, 0\]\)",
    ),
    "class weights": (
        lambda: network(label_loss=nn.CrossEntropyLoss()), {},
        lambda: network(label_loss=nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]))), {},
        r"label_loss weight None \(now \[1\.0, 9\.0\]\)",
    ),
    "other class weights": (
        lambda: network(label_loss=nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]))), {},
        lambda: network(label_loss=nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]))), {},
        r"label_loss weight \[1\.0, 2\.0\] \(now \[1\.0, 9\.0\]\)",
    ),
    "smoothing": (
        lambda: network(label_loss=nn.CrossEntropyLoss(label_smoothing=0.1)), {},
        lambda: network(label_loss=nn.CrossEntropyLoss(label_smoothing=0.2)), {},
        r"label_loss label_smoothing 0\.1 \(now 0\.2\)",
    ),
    "a partial's argument": (
        lambda: network(label_loss=smoothed(0.1)), {},
        lambda: network(label_loss=smoothed(0.2)), {},
        r"label_loss label_smoothing 0\.1 \(now 0\.2\)",
    ),
    "another loss": (
        network, {}, lambda: network(label_loss=nn.CrossEntropyLoss()), {},
        r"label_loss 'CrossEntropy' \(now 'CrossEntropyLoss'\)",
    ),
    "optimizer": (
        network, sgd(), network,
        lambda model: {"optimizer": torch.optim.Adam(model.parameters(), 0.1)},
        r"optimizer 'SGD' \(now 'Adam'\)",
    ),
    "clipping": (network, {}, network, {"max_grad_norm": 1}, r"max_grad_norm None \(now 1\.0\)"),
    "scheduler": (network, cosine(9), network, cosine(12), r"scheduler T_max 9 \(now 12\)"),
    "inputs": (
        network, {}, network, {"source": (X * 100, Y)}, "source checksum of the data .* "
    ),
    "labels": (network, {}, network, {"source": (X, 1 - Y)}, "source checksum of the data"),
    "target": (network, {}, network, {"target": T + 1}, "target checksum of the data"),
    "validation": (
        network, {"validation": (X, Y)}, network, {"validation": (X, 1 - Y)},
        "validation checksum of the data",
    ),
    "loader's batches": (
        network, {"target": loader()}, network, {"target": loader(size=5)},
        r"target batches 5 \(now 10\), target batch_size 10 \(now 5\)",
    ),
    "loader's data": (
        network, {"target": loader(30)}, network, {"target": loader(40)},
        r"target shapes \[\[30, 4\]\] \(now \[\[40, 4\]\]\)",
    ),
    "generator gone": (
        network, {"target": loader(shuffle=True, generator=torch.Generator())}, network,
        {"target": loader(shuffle=True)}, r"generators of loaders 1 \(now 0\)",
    ),
    "generator gained": (
        network, {"target": loader(shuffle=True)}, network,
        {"target": loader(shuffle=True, generator=torch.Generator())},
        r"generators of loaders 0 \(now 1\)",
    ),
    "another network": (
        network, sgd(), lambda: wider(network()), sgd(),
        r"it holds \(8, 4\) torch.float32 for features.0.weight, which is \(9, 4\)",
    ),
    "order of parameters": (
        network, sgd(), network, swapped_heads,
        r"group 0 has label_head\.weight where this one's has domain_head\.0\.weight",
    ),
    "option of a group": (
        network, two_groups(0.01), network, two_groups(0.01, lr_scale=0.5),
        r"optimizer lr_scale None \(now \[0\.5, None, None\]\)",
    ),
    "argument kept in the plural": (
        network, scheduled(lambda o: CyclicLR(o, 0.01, 0.1)), network,
        scheduled(lambda o: CyclicLR(o, 0.02, 0.1)),
        r"scheduler base_lr \[0\.01\] \(now \[0\.02\]\)",
    ),
    "argument not kept": (
        network, scheduled(lambda o: CyclicLR(o, 0.01, 0.1, step_size_up=5)), network,
        scheduled(lambda o: CyclicLR(o, 0.01, 0.1, step_size_up=6)),
        r"scheduler total_size 10\.0 \(now 12\.0\)",
    ),
    "phases": (
        network, scheduled(lambda o: OneCycleLR(o, 0.1, 24)), network,
        scheduled(lambda o: OneCycleLR(o, 0.1, 24, pct_start=0.5)), "scheduler _schedule_phases",
    ),
    "peak": (
        network, scheduled(lambda o: OneCycleLR(o, 0.1, 24, div_factor=10)), network,
        scheduled(lambda o: OneCycleLR(o, 0.2, 24, div_factor=20)),
        r"optimizer max_lr 0\.1 \(now 0\.2\)",
    ),
    "milestones": (
        network, scheduled(lambda o: in_sequence(o, 3)), network,
        scheduled(lambda o: in_sequence(o, 4)), r"scheduler milestones \[3\] \(now \[4\]\)",
    ),
    "part of a scheduler": (
        network, scheduled(lambda o: in_sequence(o, 3)), network,
        scheduled(lambda o: in_sequence(o, 3, gamma=0.7)),
        r"scheduler part 1 gamma 0\.5 \(now 0\.7\)",
    ),
    "shuffled": (
        network, {"target": loader()}, network, {"target": loader(shuffle=True)},
        r"target sampler 'SequentialSampler' \(now 'RandomSampler'\)",
    ),
    "last batch": (
        network, {"target": loader()}, network, {"target": loader(drop_last=True)},
        r"target drop_last False \(now True\)",
    ),
    "weights of samples": (
        network, {"target": loader(sampler=weighted(1))}, network,
        {"target": loader(sampler=weighted(2))}, r"target sampler weights .*checksum",
    ),
    "places of samples": (
        network, {"target": loader(sampler=SubsetRandomSampler(range(40)))}, network,
        {"target": loader(sampler=SubsetRandomSampler([*range(39), 45]))},
        r"target sampler indices",
    ),
    "batch sampler": (
        network, {"target": batched(10)}, network, {"target": batched(25)},
        r"target batches 5 \(now 2\), target batch_sampler batch_size 10 \(now 25\)",
    ),
    "other parameters": (
        network, sgd(), frozen_head,
        lambda model: {"optimizer": torch.optim.SGD(trained(model), 0.1)},
        "is of an optimizer with .* parameters in its groups",
    ),
}  # fmt: skip


def wider(model):
    model.features = nn.Sequential(nn.Linear(4, 9), *model.features[1:])
    return model


@pytest.mark.parametrize("what", OTHERS)
def test_resume_refuses_another_training_and_leaves_the_network_alone(tmp_path, what):
    first, options, second, others, message = OTHERS[what]
    path = tmp_path / "run.pt"
    model = first()
    with pytest.raises(Killed):
        train(model, checkpoint=path, after_epoch=kill_after(1), **options_of(options, model))
    model = second()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        train(model, checkpoint=path, resume=True, **options_of(others, model))
    assert all(map(torch.equal, weights(model), before))


def test_a_training_continues_though_its_own_loop_changed_λ_and_the_rate(tmp_path):
    def run(path, until=None):
        model = network(0.1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def step(record):
            if record["epoch"] == until:
                raise Killed
            model.reversal.scale = 0.1 * (record["epoch"] + 1)
            optimizer.param_groups[0]["lr"] /= 2
            record["seen"] = 1.0

        return model, lambda: train(
            model, optimizer=optimizer, checkpoint=path, resume=True, after_epoch=step
        )

    path = tmp_path / "run.pt"
    _, killed = run(path, until=2)
    with pytest.raises(Killed):
        killed()
    model, again = run(path)
    whole, at_once = run(tmp_path / "whole.pt")
    assert again().epochs == at_once().epochs
    assert same(model, whole) and model.reversal.scale == pytest.approx(0.4)


def test_a_scheduler_may_have_moved_the_momentum_of_the_optimizer_that_continues(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = OneCycleLR(optimizer, 0.1, 24)
    options = {"optimizer": optimizer, "scheduler": scheduler, "checkpoint": tmp_path / "run.pt"}
    train(model, epochs=2, **options)
    assert optimizer.param_groups[0]["momentum"] != 0.95
    assert len(train(model, epochs=4, resume=True, **options).epochs) == 4


def test_epochs_are_added_under_a_rate_of_ones_own_as_one_run_would_have(tmp_path):
    path, whole, parts = tmp_path / "run.pt", network(), network()
    train(whole, epochs=5, **sgd()(whole))
    train(parts, epochs=2, checkpoint=path, **sgd()(parts))
    train(parts, epochs=5, checkpoint=path, resume=True, **sgd()(parts))
    assert same(whole, parts)


def test_epochs_are_not_added_under_the_default_rate(tmp_path):
    path = tmp_path / "run.pt"
    train(network(), epochs=2, checkpoint=path)
    message = r"max_steps 8 \(now 20\).* give an optimizer and a scheduler of your own"
    with pytest.raises(ValueError, match=message):
        train(network(), epochs=5, checkpoint=path, resume=True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    own = {"optimizer": optimizer, "scheduler": GaninLearningRate(optimizer, 8)}
    assert len(train(model, epochs=5, checkpoint=path, resume=True, **own).epochs) == 5
    with pytest.raises(ValueError, match="is of 5 epochs already, and epochs is 3"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        own = {"optimizer": optimizer, "scheduler": GaninLearningRate(optimizer, 8)}
        train(model, epochs=3, checkpoint=path, resume=True, **own)


def test_keep_best_is_refused_where_the_best_weights_were_not_kept(tmp_path):
    path = tmp_path / "run.pt"
    options = {"checkpoint": path, "validation": (X, Y)}
    with pytest.raises(Killed):
        train(network(), after_epoch=kill_after(2), **options)
    with pytest.raises(ValueError, match=r"without keep_best=True, and the weights of its best"):
        train(network(), resume=True, keep_best=True, **options)
    train(network(), resume=True, **options)


# Loaders.


def numbered(n):
    return TensorDataset(torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n) % 2)


def targets_of(target, **options):
    watch = Seen()
    model = DANN(watch, nn.Linear(1, 2), nn.Linear(1, 1), together=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    fit(model, numbered(60).tensors, target, batch_size=20, optimizer=optimizer, progress=False,
        **options)  # fmt: skip
    return watch.rows[1::2]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_longer_target_loader_is_used_up(shuffle):
    rows = targets_of(DataLoader(numbered(200), 20, shuffle=shuffle), epochs=10)
    for start in (0, 10, 20):
        assert sorted(itertools.chain(*rows[start : start + 10])) == list(range(200))
    if shuffle:
        assert rows[:10] != rows[10:20]


ORDERS = {
    "as it lies": dict,
    "shuffled": lambda: {"shuffle": True},
    "own generator": lambda: {"shuffle": True, "generator": torch.Generator().manual_seed(4)},
    "sampler's generator": lambda: {
        "sampler": WeightedRandomSampler(
            torch.ones(70), 70, generator=torch.Generator().manual_seed(4)
        )
    },
    "batch sampler's generator": lambda: {
        "batch_sampler": BatchSampler(
            RandomSampler(range(70), generator=torch.Generator().manual_seed(4)), 20, False
        )
    },
    "drawn bit by bit": lambda: {
        "sampler": RandomSampler(
            range(70), replacement=True, generator=torch.Generator().manual_seed(4)
        )
    },
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_loader_continues_within_its_pass(tmp_path, order, stop):
    def target():
        options = ORDERS[order]()
        if "batch_sampler" not in options:
            options["batch_size"] = 20
        return DataLoader(numbered(70), **options)

    wanted = targets_of(target(), epochs=6)
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        targets_of(target(), epochs=6, checkpoint=path, after_epoch=kill_after(stop))
    rest = targets_of(target(), epochs=6, checkpoint=path, resume=True)
    assert rest == wanted[3 * stop :]


def test_a_source_whose_sampler_owns_the_generator_continues_bit_for_bit(tmp_path):
    def options():
        draw = torch.Generator().manual_seed(7)
        sampler = WeightedRandomSampler(torch.arange(50.0) + 1, 60, generator=draw)
        return {"source": DataLoader(TensorDataset(X, Y), 16, sampler=sampler), "epochs": 4}

    whole, parts, path = network(dropout=0.5), network(dropout=0.5), tmp_path / "run.pt"
    train(whole, **options())
    with pytest.raises(Killed):
        train(copy.deepcopy(parts), checkpoint=path, after_epoch=kill_after(2), **options())
    train(parts, checkpoint=path, resume=True, **options())
    assert not same(parts, network()) and same(whole, parts)


class Epochs(RandomSampler):
    """A sampler that notes the epochs that it is told, as DistributedSampler is."""

    def __init__(self, data):
        super().__init__(data)
        self.told = []

    def set_epoch(self, epoch):
        self.told.append(epoch)


def test_a_sampler_is_told_its_pass_which_goes_on_when_resumed(tmp_path):
    def told(**options):
        sampler = Epochs(range(50))
        source = DataLoader(TensorDataset(X, Y), 10, sampler=sampler)
        with contextlib.suppress(Killed):
            train(network(), source, epochs=5, **options)
        return sampler.told

    path = tmp_path / "run.pt"
    assert told(checkpoint=path, after_epoch=kill_after(2)) == [0, 1, 2]
    assert told(checkpoint=path, resume=True) == [2, 3, 4]


def test_the_default_rate_needs_the_length_of_an_epoch():
    class Endless:
        def __iter__(self):
            return iter([(X[:10], Y[:10])])

    with pytest.raises(ValueError, match="source loader has no length, which the default learning"):
        train(network(), Endless())


def test_a_loader_that_has_become_shorter_is_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __init__(self, n):
            self.n = n

        def __iter__(self):
            return iter(T[: self.n])

    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        train(
            network(), target=DataLoader(Stream(30), 3), checkpoint=path, after_epoch=kill_after(2)
        )
    model = network(seed=3)
    before = weights(model)
    with pytest.raises(ValueError, match="ended after 4 batches, where 8 had been taken of it"):
        train(model, target=DataLoader(Stream(12), 3), checkpoint=path, resume=True)
    assert all(map(torch.equal, weights(model), before))
