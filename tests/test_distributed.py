"""Two processes train as one does, under DDP and FSDP2: weights, λ, history, and after a kill."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pyrevgrad.adversarial import DANN, GaninSchedule, evaluate, fit
from pyrevgrad.nn import GradientReversal, ReversedLinear

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

pytestmark = pytest.mark.slow

STEPS = 5 * 4


def network():
    torch.manual_seed(0)
    return DANN(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 2), nn.Linear(8, 1),
        scale=GaninSchedule(STEPS), record_norm=True,
    )  # fmt: skip


def data():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=draw)
    return (x, (x[:, 0] > 0).long()), torch.randn(24, 4, generator=draw) + 1


def train(model, **options):
    source, target = data()
    return fit(
        model, source, target, epochs=5, batch_size=8, progress=False, validation=source,
        scores={"target": source}, **options,
    )  # fmt: skip


def worker(mode, folder):
    """What each process runs: fit under DistributedDataParallel, and says what came of it."""
    if mode == "sharded":
        return sharded(folder)
    if mode == "normalised":
        return normalised(folder)
    if mode == "recording":
        return recording(folder)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = network()
    if mode == "nan":
        try:
            train(model)
        except ValueError as error:
            (folder / f"bare {rank}.txt").write_text(str(error))
    wrapped = nn.parallel.DistributedDataParallel(model)
    if mode == "compiled":
        wrapped = torch.compile(wrapped, backend="eager")
    options = {"checkpoint": folder / "run.pt", "resume": True}
    if mode == "killed":

        def stop(record):
            if record["epoch"] == 3:
                os._exit(9)

        options["after_epoch"] = stop
    if mode == "nan" and rank == 1:
        model.label_head.register_forward_hook(_nan_after(6))
    try:
        history = train(wrapped, **options)
    except Exception as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        return
    torch.save(model.state_dict(), folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(history.epochs))
    torch.distributed.destroy_process_group()


def normalised(folder):
    """Each process's normalisation sees a share of its own; the weights of the best epoch stay."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    model = DANN(features, nn.Linear(8, 2), nn.Linear(8, 1))
    source, target = data()
    # A share of the held-out data for each process, as a DistributedSampler deals it out.
    held_out = [part[rank::2] for part in source]
    history = fit(
        nn.parallel.DistributedDataParallel(model), source, target, epochs=6, batch_size=4,
        optimizer=torch.optim.SGD(model.parameters(), 0.3), validation=tuple(held_out),
        keep_best=True, patience=2, checkpoint=folder / "run.pt", progress=False,
    )  # fmt: skip
    torch.save(model.state_dict(), folder / f"{rank}.pt")
    told = [evaluate(model, source).loss, history.best_epoch, history.epochs]
    (folder / f"{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


def sharded(folder):
    """A plain loop under FSDP2, each process with its half; then λ under mixed precision."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = folded()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for part in (model.features, model.label_head, model.domain_head, model):
        fully_shard(part, mesh=mesh)
    try:
        train(model)
    except ValueError as error:
        (folder / f"refused {rank}.txt").write_text(str(error))
    loop(model, slice(rank, None, 2))
    full = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }
    torch.save(full, folder / f"{rank}.pt")
    half = folded()
    half.reversal.scale = 0.3
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(half, mesh=mesh, mp_policy=policy)
    (x, y), target = data()
    half(x, y, target).loss.backward()
    (folder / f"{rank}.json").write_text(
        json.dumps([half.reversal.scale.item(), str(half.reversal.scale.dtype)])
    )
    torch.distributed.destroy_process_group()


def recording(folder):
    """A DTensor's gradient, each process with some of its rows, through layers that record."""
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    norms = []
    for layer in recording_layers():
        x, g = (distribute_tensor(torch.ones(3, 4), mesh, [Shard(0)]) for _ in range(2))
        distribute_module(layer, mesh)(x.requires_grad_()).backward(g * 2)
        norms.append(layer.gradient_norm.item())
    (folder / f"{rank}.json").write_text(json.dumps(norms))
    torch.distributed.destroy_process_group()


def recording_layers():
    torch.manual_seed(0)
    linear = ReversedLinear(4, 4, scale=0.5, record_norm=True)
    return GradientReversal(0.5, record_norm=True), linear


def folded():
    torch.manual_seed(0)
    return DANN(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 2),
        nn.Sequential(ReversedLinear(8, 6, activation="relu"), nn.Linear(6, 1)),
        scale=GaninSchedule(STEPS),
    )  # fmt: skip


def loop(model, share):
    (x, y), target = data()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(6):
        optimizer.zero_grad()
        model(x[share], y[share], target[share]).loss.backward()
        optimizer.step()
        model.schedule.step()


def _nan_after(calls):
    left = [calls]

    def hook(module, x, y):
        if module.training:
            left[0] -= 1
        return y if left[0] >= 0 else y * float("nan")

    return hook


def launched(folder, mode):
    """Run both processes as torchrun would, and wait."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-W", "ignore", __file__, mode, str(folder)]
        processes.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def saved(folder, rank):
    return torch.load(folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    codes, said = launched(folder, "whole")
    assert codes == [0, 0], said
    return folder


def test_two_processes_match_one_with_the_joined_batch(whole):
    model = network()
    history = train(model)
    states = [saved(whole, rank) for rank in range(2)]
    for name, wanted in model.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], wanted, rtol=2e-5, atol=2e-6)
    assert states[0]["reversal.scale"].item() == GaninSchedule(1).at(1.0)
    for rank in range(2):
        records = json.loads((whole / f"{rank}.json").read_text())
        for ours, theirs in zip(records, history.epochs, strict=True):
            for name in set(theirs) - {"gradient_norm"}:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name


def test_what_torch_compile_wraps_trains_in_both(tmp_path, whole):
    codes, said = launched(tmp_path, "compiled")
    assert codes == [0, 0], said
    for rank in range(2):
        ours, theirs = saved(tmp_path, rank), saved(whole, rank)
        for name, wanted in theirs.items():
            torch.testing.assert_close(ours[name], wanted)


def test_a_killed_run_of_two_continues_bit_for_bit(tmp_path, whole):
    assert launched(tmp_path, "killed")[0] == [9, 9]
    assert torch.load(tmp_path / "run.pt")["step"] == 2 * 4  # killed within the third epoch
    codes, said = launched(tmp_path, "whole")
    assert codes == [0, 0], said
    for rank in range(2):
        ours, theirs = saved(tmp_path, rank), saved(whole, rank)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        read = [(folder / f"{rank}.json").read_text() for folder in (tmp_path, whole)]
        assert read[0] == read[1]


def test_a_nan_in_one_process_stops_both_and_a_bare_model_is_refused(tmp_path):
    launched(tmp_path, "nan")
    for rank in range(2):
        text = (tmp_path / f"{rank}.txt").read_text()
        said = "DivergedError: at step 7 (epoch 2, both counted from 1) the loss is not finite"
        assert text.startswith(said), text
        assert f"the last good checkpoint, of the end of epoch 1, is {tmp_path / 'run.pt'}" in text
        assert ("in another process" in text) == (rank == 0)
        refused = (tmp_path / f"bare {rank}.txt").read_text()
        assert "runs 2 processes" in refused and "wrap it in torch.nn.parallel" in refused


def test_both_processes_score_and_keep_the_running_statistics_of_the_first(tmp_path):
    codes, said = launched(tmp_path, "normalised")
    assert codes == [0, 0], said
    states, told = zip(
        *((saved(tmp_path, r), json.loads((tmp_path / f"{r}.json").read_text())) for r in range(2)),
        strict=True,
    )
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert told[0] == told[1]
    whole_loss, best, records = told[0]
    losses = [record["validation_loss"] for record in records]
    assert losses.index(min(losses)) == best
    # Halves of equal size: the mean of their losses is that of the whole.
    assert losses[best] == pytest.approx(whole_loss, rel=1e-6)
    *_, kept = torch.load(tmp_path / "run.pt")["best"]
    assert all(torch.equal(kept[name], states[0][name]) for name in kept)


def test_fsdp2_matches_one_process_and_leaves_the_scale_alone(tmp_path):
    codes, said = launched(tmp_path, "sharded")
    assert codes == [0, 0], said
    model = folded()
    loop(model, slice(None))
    for rank in range(2):
        found = saved(tmp_path, rank)
        for name, wanted in model.state_dict().items():
            torch.testing.assert_close(found[name], wanted, rtol=2e-5, atol=2e-6)
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [0.3, "torch.float64"]
        refused = (tmp_path / f"refused {rank}.txt").read_text()
        assert "does not train a model that FSDP has sharded" in refused


def test_the_recorded_norm_of_a_sharded_gradient_is_that_of_the_whole(tmp_path):
    codes, said = launched(tmp_path, "recording")
    assert codes == [0, 0], said
    g = torch.full((3, 4), 2.0)
    _, linear = recording_layers()
    wanted = [0.5 * g.norm().item(), 0.5 * (g @ linear.weight).norm().item()]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(wanted)


if __name__ == "__main__":
    worker(sys.argv[1], Path(sys.argv[2]))
