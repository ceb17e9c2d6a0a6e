"""One run of training: its data, its state, an epoch, when it ends.

Imports the networks, batches, scores and checks of optimizers beside it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import check_count, check_finite
from ..schedules import GaninLearningRate, GaninSchedule, LinearSchedule
from .batches import Batches, Loaded, domains, dtype_of, parts_of
from .networks import DANN, Losses
from .optimizers import check_parameters, check_steps
from .processes import Processes
from .records import DivergedError, History
from .scoring import score, to_score

#: Steps between looks at whether the loss is finite, where a look waits for a device.
LOOK_EVERY = 50
MEANS = ("loss", "label_loss", "domain_loss", "label_accuracy", "domain_accuracy")


def _checked_norm(max_norm: object) -> float:
    norm = check_finite("max_grad_norm", max_norm)
    if norm <= 0:
        raise ValueError(f"max_grad_norm must be > 0, got {max_norm!r}; None does not clip")
    return norm


def _least(network: DANN) -> int:
    """The samples that a domain's batch needs: 2 where normalisation may see it by itself."""
    parts = [network.label_head] if network.together else [network.label_head, network.features]
    layers = [layer for part in parts for layer in part.modules()]
    return 2 if any(isinstance(it, _BatchNorm) and it.training for it in layers) else 1


def _refuse_float16(model: torch.nn.Module, device: Any) -> None:
    """ValueError under an autocast to float16, in which gradients underflow without an error."""
    asked = {p.device for p in model.parameters()} if device is None else {torch.device(device)}
    for kind in sorted({where.type for where in asked}):
        if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
            continue
        if torch.get_autocast_dtype(kind) == torch.float16:
            raise ValueError(
                f"autocast to torch.float16 is in force on {kind}, and fit scales no loss, so that "
                f'small gradients would become 0: use torch.autocast("{kind}", torch.bfloat16)'
            )


class Run:
    """A training that goes on epoch by epoch, from its start or from a checkpoint."""

    def __init__(self, model: Any, epochs: int, batch_size: int, seed: int, device: Any) -> None:
        self.epochs = check_count("epochs", epochs)
        self.batch_size = check_count("batch_size", batch_size)
        self.seed = check_count("seed", seed, 0)
        network = Processes.unwrapped(model)
        if not isinstance(network, DANN):
            raise TypeError(f"fit trains a DANN, not {type(network).__name__}")
        if not torch.is_grad_enabled():
            raise ValueError(
                "gradients are off where fit is called (torch.no_grad or torch.inference_mode), "
                "and it trains by them: call it outside of that"
            )
        self.network: DANN = network
        scale = float(network.reversal.readings()["scale"])
        if not math.isfinite(scale):
            raise ValueError(f"λ of the network's reversal is {scale}: give one that is finite")
        self.processes = Processes(model)
        if self.seed + self.processes.count > 2**64:
            raise ValueError(
                f"seed must be at most {2**64 - self.processes.count}, got {seed}: torch takes 64 "
                "bits, and each process draws from a seed of its own"
            )
        if self.batch_size % self.processes.count:
            raise ValueError(
                f"batch_size {batch_size} cannot be dealt out to {self.processes.count} processes"
            )
        _refuse_float16(model, device)
        self.model = model if device is None else model.to(device)
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.step = 0
        self.history = History()
        self.asked: Path | None = None
        self.saved: Path | None = None
        self.best: tuple[float, dict[str, Any] | None] = (math.inf, None)

    def take_data(self, source: Any, target: Any, validation: Any, scores: Any) -> None:
        """Make batches of what the user gave."""
        share = self.processes.rank, self.processes.count
        kept: dict[str, Any] = {"least": _least(self.network), "dtype": dtype_of(self.network)}
        size, seeds = self.batch_size, ([self.seed, 0], [self.seed, 1])
        self.sources = domains("source", source, 2, size, seeds[0], share, **kept)
        self.targets = domains("target", target, 1, size, seeds[1], share, **kept)
        if not isinstance(scores, (Mapping, type(None))):
            raise TypeError(
                f"scores is a dict of data by name, as {{'target': (x, y)}}, not a "
                f"{type(scores).__name__}"
            )
        labelled = {} if validation is None else {"validation": validation}
        for name, data in (scores or {}).items():
            if name in ("validation", "label", "domain"):
                raise ValueError(f"a score cannot be called {name!r}: the history has that name")
            labelled[name] = data
        self.labelled = {
            name: to_score(name, data, self.batch_size, self.network)
            for name, data in labelled.items()
        }

    def take_optimizer(self, optimizer: Any, scheduler: Any, max_norm: float | None) -> None:
        """Use the user's optimizer, or the paper's, with gradients of at most a norm."""
        self.max_norm = None if max_norm is None else _checked_norm(max_norm)
        self.paper_rate = optimizer is None
        if optimizer is None:
            if scheduler is not None:
                raise ValueError("a scheduler comes with the optimizer that it was made for")
            steps = self.sources[0].per_pass
            if steps is None:
                raise ValueError(
                    "the source loader has no length, which the default learning rate follows: "
                    "give an optimizer"
                )
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
            scheduler = GaninLearningRate(optimizer, self.epochs * steps)
        else:
            check_steps(optimizer, scheduler)
            check_parameters(self.network, optimizer, scheduler)
        self.optimizer, self.scheduler = optimizer, scheduler

    def take_patience(self, patience: int | None, keep_best: bool) -> None:
        """When to stop early, and with which weights to end."""
        if patience is not None:
            patience = check_count("patience", patience)
        if "validation" not in self.labelled and (patience is not None or keep_best):
            raise ValueError("patience and keep_best need a validation to go by")
        self.patience, self.keep_best = patience, keep_best

    @property
    def loaded(self) -> list[Loaded]:
        """The loaders that are trained on."""
        return [part for part in (*self.sources, *self.targets) if isinstance(part, Loaded)]

    @property
    def steps(self) -> int | None:
        """How many steps all epochs take, if that is known."""
        per_epoch = self.sources[0].per_pass
        return None if per_epoch is None else per_epoch * self.epochs

    def goes_on(self) -> bool:
        """Whether another epoch is to come."""
        done, best = len(self.history.epochs), self.history.best_epoch
        if self.patience is not None and done:
            waited = done - 1 - best if best is not None else done
            self.history.stopped_early = waited >= self.patience
        return done < self.epochs and not self.history.stopped_early

    def check_schedule(self) -> None:
        """A warning where λ is below 0, or ends at less than half of its schedule's height."""
        schedule, steps = self.network.schedule, self.steps
        now = self.network.scale.item()
        least = now if schedule is None else min(now, schedule.at(1.0))
        if least < 0:
            warnings.warn(
                f"λ is or becomes {least:.3g}: below 0 it undoes the reversal, so that the "
                "features help the domain head; give λ without its sign",
                UserWarning,
                stacklevel=3,
            )
            return
        if not isinstance(schedule, (GaninSchedule, LinearSchedule)) or steps is None:
            return
        last = schedule.steps + steps - self.step
        ends, whole = schedule.at(min(last / schedule.max_steps, 1.0)), schedule.at(1.0)
        if ends < whole / 2:
            warnings.warn(
                f"λ ends at {ends:.3g} of {whole:.3g}: the run ends at step {last} of its "
                f"schedule, whose max_steps is {schedule.max_steps}",
                UserWarning,
                stacklevel=3,
            )

    # An epoch.

    def epoch(self, bar: Any) -> dict[str, float]:
        """Train one epoch and return its record."""
        number = len(self.history.epochs)
        # Casts of before a checkpoint was loaded, or of a score, which have no gradient.
        torch.clear_autocast_cache()
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        sums = torch.zeros(2, len(MEANS), dtype=kind, device=self.device)
        self._first_bad = torch.full((), -1, dtype=torch.long, device=self.device)
        for batches in self._steps():
            losses = self._take_step(*batches)
            found = torch.stack([value.detach().to(kind) for value in losses])
            sums += torch.stack([found.nan_to_num(), ~found.isnan()])
            self.step += 1
            bar.update(1)
        for part in self.loaded:
            part.settle()
        self._look(None)
        self._check_weights()
        means = self.processes.mean(sums[0] / sums[1]).tolist()
        record = {"epoch": number + 1, "step": self.step, **dict(zip(MEANS, means, strict=True))}
        record |= self._standing()
        # DistributedDataParallel would share them at the next forward, which is after the scores.
        self.processes.share_buffers(self.network)
        for name, data in self.labelled.items():
            found_score = score(self.network, data)
            pair = torch.tensor([found_score.loss, found_score.accuracy], dtype=kind)
            loss, accuracy = self.processes.mean(pair.to(self.device)).tolist()
            record |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        self.history.epochs.append(record)
        self._compare(record)
        return record

    def _steps(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """The batches of each step of an epoch, of the sources and of the targets."""
        every = [*self.sources, *self.targets]
        first, start = self.sources[0], self.step
        steps = None if isinstance(first, Loaded) else first.per_pass
        if isinstance(first, Loaded):
            first.begin()
        while steps is None or self.step - start < steps:
            found = []
            for part in every:
                try:
                    found.append(self._next(part, part is first))
                except StopIteration:
                    if self.step == start:
                        raise ValueError("source has no batch") from None
                    return
            yield found[: len(self.sources)], found[len(self.sources) :]

    def _next(self, part: Batches, first: bool) -> Any:
        if isinstance(part, Loaded):
            return part.next() if first else part.endless()
        return part.at(self.step)

    def _take_step(self, sources: list[Any], targets: list[Any]) -> Losses:
        labelled = [parts_of("source", batch, self.device) for batch in sources]
        others = [parts_of("target", batch, self.device, labelled=False)[0] for batch in targets]
        self.optimizer.zero_grad()
        losses = self._losses([x for x, _ in labelled], [y for _, y in labelled], others)
        if self.device.type == "cpu":
            self._look(losses)
        else:
            bad = ~losses.loss.detach().isfinite() & (self._first_bad < 0)
            self._first_bad.masked_fill_(bad, self.step)
            if self.step % LOOK_EVERY == LOOK_EVERY - 1:
                self._look(None)
        # Under autocast, backward has the dtypes of the forward, and no cast of its own.
        with torch.autocast(self.device.type, enabled=False):
            losses.loss.backward()
        if self.max_norm is not None:
            self._clip(self.max_norm)
        self.optimizer.step()
        # Where the caller put fit under autocast, the casts of the weights before this step would
        # stay in its cache to the end of that context.
        torch.clear_autocast_cache()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.network.schedule is not None:
            self.network.schedule.step()
        return losses

    def _losses(self, *batches: list[Any]) -> Losses:
        try:
            return self.model(*batches)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "a batch normalisation in training mode got one sample, which has no variance: "
                "choose another batch size, or drop_last=True in a DataLoader, so that no batch "
                f"of a domain has one sample ({error})"
            ) from error

    def _look(self, losses: Losses | None) -> None:
        """DivergedError if a loss is not finite: of this step, or of one since the last look."""
        if losses is None:
            bad_step = int(self._first_bad.item())
        else:
            bad_step = -1 if math.isfinite(losses.loss.item()) else self.step
        if not self.processes.any(bad_step >= 0, self.device):
            return
        step = bad_step if bad_step >= 0 else self.step
        what = "in another process"
        if losses is not None and bad_step >= 0:
            label, domain = losses.label_loss.item(), losses.domain_loss.item()
            what = f"(label loss {label:g}, domain loss {domain:g})"
            if math.isnan(label) and losses.label_accuracy.isnan():
                what += ", where every label of the batch is ignored or none is a class"
        elif bad_step >= 0:
            what = "or infinite"
        self._diverged(f"the loss is not finite {what}", step)

    def _clip(self, max_norm: float) -> None:
        """Scale the gradients down; DivergedError where the CPU sees that their norm is none."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        if self.device.type == "cpu" and not math.isfinite(norm.item()):
            self._diverged(f"the loss is finite, and the norm of the gradient is {norm}", self.step)

    def _check_weights(self) -> None:
        """DivergedError if a weight is not finite, before that could be saved."""
        whole = [torch.isfinite(p.detach()).all() for p in self.network.parameters()]
        if whole and not bool(torch.stack(whole).all()):
            names = [n for n, p in self.network.named_parameters() if not p.isfinite().all()]
            self._diverged(f"the loss was finite, and the weights {names[0]} are not", self.step)

    def _diverged(self, what: str, step: int) -> None:
        epoch = len(self.history.epochs)
        kept = "no checkpoint was asked for"
        if self.asked is not None:
            kept = f"no checkpoint had been written to {self.asked}"
        if self.saved is not None:
            kept = f"the last good checkpoint, of the end of epoch {epoch}, is {self.saved}"
        place = f"at step {step + 1} (epoch {epoch + 1}, both counted from 1)"
        raise DivergedError(f"{place} {what}; {kept}", step, epoch, self.saved)

    def _standing(self) -> dict[str, float]:
        readings = self.network.reversal.readings()
        # Each process has its own share of the batch, and so a norm of its own.
        found = self.processes.mean(torch.stack(list(readings.values()))).tolist()
        standing = dict(zip(readings, found, strict=True))
        return {**standing, "learning_rate": float(self.optimizer.param_groups[0]["lr"])}

    def _compare(self, record: dict[str, float]) -> None:
        loss = record.get("validation_loss", math.nan)
        if loss < self.best[0]:
            self.history.best_epoch = len(self.history.epochs) - 1
            state = copy.deepcopy(self.network.state_dict()) if self.keep_best else None
            self.best = loss, state

    def finish(self) -> None:
        """End with the best weights, if they were to be kept."""
        if self.keep_best and self.best[1] is not None:
            self.network.load_state_dict(self.best[1])
