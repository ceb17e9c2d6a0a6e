"""A run saved after an epoch, and one that continues it. Imports the run and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from . import checkpoints, settings
from .batches import Loaded
from .runs import Run


class Continuing:
    """Saves a run to a file, and loads it from there, if it is of the same training.

    What must be the same is read here, at the run's start: a loop may change λ or a rate later.
    """

    def __init__(self, run: Run, path: Path) -> None:
        self.run, self.path = run, path
        run.asked = path
        self.settings = _settings(run)

    def save(self) -> None:
        """Write everything that continuing needs; the first process writes for all."""
        run = self.run
        plain = checkpoints.without_numpy
        states = [generator.get_state() for generator in _generators(run)]
        loaders = [part.state() for part in run.loaded]
        drawn = checkpoints.random_state(run.device), states, loaders
        gathered = run.processes.gathered((self.settings, drawn))
        schedule = run.network.schedule
        if run.processes.rank == 0:
            content = {
                "settings": [own for own, _ in gathered],
                "model": run.network.state_dict(),
                "optimizer": plain(run.optimizer.state_dict()),
                "parameters": _parameters(run),
                "scheduler": None if run.scheduler is None else plain(run.scheduler.state_dict()),
                "schedule": None if schedule is None else plain(schedule.state_dict()),
                "step": run.step,
                "epochs": plain(run.history.epochs),
                "best": (run.history.best_epoch, *run.best),
                "random": [own for _, own in gathered],
            }
            checkpoints.write(self.path, content)
        run.processes.wait()
        run.saved = self.path

    def load(self) -> None:
        """Continue from what `save` wrote; nothing changes unless all of it fits."""
        run, content, refused = self.run, {}, None
        try:
            content = _named_as_here(checkpoints.read(self.path), run)
            self._check(content)
            *_, loaders = content["random"][run.processes.rank]
            for part, saved in zip(run.loaded, loaders, strict=True):
                part.go_to(saved)
        except ValueError as error:
            refused = error
        if run.processes.any(refused is not None, run.device):
            raise refused or ValueError(f"{self.path} does not fit in another process")
        run.network.load_state_dict(content["model"])
        run.optimizer.load_state_dict(content["optimizer"])
        if run.scheduler is not None:
            run.scheduler.load_state_dict(content["scheduler"])
        if run.network.schedule is not None:
            run.network.schedule.load_state_dict(content["schedule"])
        run.step, run.history.epochs = content["step"], content["epochs"]
        run.history.best_epoch, *best = content["best"]
        run.best = best[0], best[1]
        state, generators, _ = content["random"][run.processes.rank]
        checkpoints.set_random_state(state, run.device)
        for generator, saved in zip(_generators(run), generators, strict=True):
            generator.set_state(saved)
        run.saved = self.path

    def _check(self, content: dict[str, Any]) -> None:
        """ValueError, with what differs, where the file is of another training."""
        run, saved = self.run, content["settings"]
        own = saved[run.processes.rank] if run.processes.rank < len(saved) else saved[0]
        other = settings.differences(own, self.settings)
        if other:
            cure = ""
            if run.paper_rate and any("max_steps" in each for each in other):
                cure = (
                    ". The default learning rate falls over all epochs, so that these must stay "
                    "the same: give an optimizer and a scheduler of your own to add epochs"
                )
            raise ValueError(
                f"{self.path} is of a training with {', '.join(other)}: the same training cannot "
                f"continue{cure}"
            )
        done = len(content["epochs"])
        if done > run.epochs:
            raise ValueError(f"{self.path} is of {done} epochs already, and epochs is {run.epochs}")
        best_epoch, _, best_weights = content["best"]
        if run.keep_best and best_epoch is not None and best_weights is None:
            raise ValueError(
                f"{self.path} is of a training without keep_best=True, and the weights of its best "
                f"epoch, {best_epoch + 1}, are not in it: continue without keep_best, or begin anew"
            )
        _check_weights(self.path, content, run)


def _settings(run: Run) -> dict[str, Any]:
    """What must be the same in a training that continues."""
    validation = [run.labelled[name] for name in ("validation",) if name in run.labelled]
    return {
        **settings.of_network(run.network),
        "optimizer": settings.of_optimizer(run.optimizer),
        "scheduler": settings.of_scheduler(run.scheduler),
        "max_grad_norm": run.max_norm,
        "batch_size": run.batch_size,
        "seed": run.seed,
        "processes": run.processes.count,
        **settings.of_data("source", run.sources, 2),
        **settings.of_data("target", run.targets, 1),
        **settings.of_data("validation", validation, 2),
        "generators of loaders": len(_generators(run)),
    }


def _generators(run: Run) -> list[torch.Generator]:
    """Each once, though loaders may share them."""
    parts = [part for part in run.labelled.values() if isinstance(part, Loaded)]
    found = [generator for part in (*run.loaded, *parts) for generator in part.generators]
    return list({id(generator): generator for generator in found}.values())


def _named_as_here(content: dict[str, Any], run: Run) -> dict[str, Any]:
    """The same content, its weights by the names that they have with what is compiled here."""
    own = {_uncompiled(name): name for name in run.network.state_dict()}

    def named(state: dict[str, Any]) -> dict[str, Any]:
        return {own.get(_uncompiled(name), name): tensor for name, tensor in state.items()}

    best_epoch, loss, weights = content["best"]
    best = best_epoch, loss, None if weights is None else named(weights)
    return {**content, "model": named(content["model"]), "best": best}


def _uncompiled(name: str) -> str:
    """A name in a state_dict without what torch.compile puts into it."""
    return name.replace("_orig_mod.", "")


def _check_weights(path: Path, content: dict[str, Any], run: Run) -> None:
    """ValueError where the weights are of another network, or the optimizer's of other weights."""
    saved, own = content["model"], run.network.state_dict()
    for name in dict.fromkeys((*own, *saved)):
        kinds = [
            f"{tuple(state[name].shape)} {state[name].dtype}"
            if isinstance(state.get(name), torch.Tensor)
            else ("something" if name in state else "nothing")
            for state in (saved, own)
        ]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{path} is of another network: it holds {kinds[0]} for {name}, which is "
                f"{kinds[1]} here"
            )
    groups = [
        [len(group["params"]) for group in optimizer["param_groups"]]
        for optimizer in (content["optimizer"], run.optimizer.state_dict())
    ]
    if groups[0] != groups[1]:
        raise ValueError(
            f"{path} is of an optimizer with {groups[0]} parameters in its groups, and this one "
            f"has {groups[1]}"
        )
    pairs = zip(content["parameters"], _parameters(run), strict=True)
    for i, (before, now) in enumerate(pairs):
        for was, name in zip(before, now, strict=True):
            if was != name:
                raise ValueError(
                    f"{path} is of an optimizer whose group {i} has {was or 'another parameter'} "
                    f"where this one's has {name or 'another'}: their states would change places"
                )


def _parameters(run: Run) -> list[list[str | None]]:
    """The names of the optimizer's parameters, by group; None for those not of the network."""
    names = {id(p): _uncompiled(name) for name, p in run.network.named_parameters()}
    groups = run.optimizer.param_groups
    return [[names.get(id(p)) for p in group["params"]] for group in groups]
