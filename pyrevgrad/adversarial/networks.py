"""The domain-adversarial network: features, a label head, and a domain head behind a reversal.

Imports the layers, schedules, and what arrays become.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_finite
from ..nn import GradientReversal
from ..schedules import Schedule
from .batches import dtype_of, tensor_of
from .labels import CrossEntropy, accuracy, check_labels, ignored_by, kind_of
from .placing import given_to, refuse_another, refuse_learning_before, the_folded_in
from .probabilities import refuse_probabilities

#: One batch, or one for each of several domains.
Batches = Tensor | Sequence[Tensor]


class Losses(NamedTuple):
    """What a network returns in training: 0-dim tensors, on their device.

    Attributes
    ----------
    loss : Tensor
        ``label_loss + domain_weight · domain_loss``; call ``backward()`` on this.
    label_loss : Tensor
        Of the source samples.
    domain_loss : Tensor
        Of all samples, unweighted.
    label_accuracy : Tensor
        Share of source labels that are right, ignored ones aside; NaN where labels are no classes.
    domain_accuracy : Tensor
        Mean over the domains of the share that the domain head recognises: 1 / (number of domains)
        where it cannot tell them apart.
    """

    loss: Tensor
    label_loss: Tensor
    domain_loss: Tensor
    label_accuracy: Tensor
    domain_accuracy: Tensor


class DANN(nn.Module):
    """Domain-adversarial training of neural networks: Ganin et al. (2016), section 4.

    Two numbers are often confused, so they have two names. With E the domain loss,

    * **domain_weight** w: the domain head descends ``w · E``. It is the weight of the loss.
    * **scale** λ: the features receive ``−λ · w · ∂E/∂features`` beside the label loss's gradient.
      It is the reversal's, and has no effect on the domain head, on any loss, or at test time.

    The paper's λ, with its schedule, is `scale`; weight 1 is the paper's.

    Parameters
    ----------
    features : torch.nn.Module
        From inputs to features, of any shape (n, …).
    label_head : torch.nn.Module
        From features to what `label_loss` takes first: of cross-entropy, logits.
    domain_head : torch.nn.Module
        From features to domain logits: one, (n, 1, …) or (n,), for two domains, or K, (n, K, …),
        for K domains. No sigmoid or softmax at its end. Further dimensions, as of a head per pixel,
        are averaged.
    label_loss : callable
        ``label_loss(label_head(features), labels)``, a 0-dim tensor; cross-entropy if not given.
        For imbalanced classes: ``nn.CrossEntropyLoss(weight)``, whose weights follow the network.
        A label head of one logit, (n, 1), takes labels 0 and 1 and a loss of your own.
    scale : float, 0-dim Tensor or Schedule, optional
        λ, handed to the `GradientReversal` that is ``model.reversal``; 1 if not given. Later
        ``model.scale`` reads and sets it. A domain
        head that begins with a `ReversedLinear` or `ReversedConv2d` (or with a module that holds
        one, before all that learns there) brings the reversal with it: ``model.reversal`` is that
        layer, and keeps its own λ if none is given here.
    domain_weight : float
        w >= 0.
    domain_average : {"domains", "samples"}
        Whether the domain loss is the mean of the domains' means, so that a domain counts the same
        whatever its batch's size, or the mean over all samples. Equal where batches are.
    together : bool
        Whether source and target go through `features` as one batch, which batch normalisation
        sees, or each by itself, which their sizes may require.
    ignore_index : int, optional
        The label that is no class; that of `label_loss` if it has one, else −100.
    record_norm : bool
        Whether ``model.reversal.gradient_norm`` is recorded.

    Raises
    ------
    TypeError, ValueError
        A part that is no module, a weight that is negative, an unknown average.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = DANN(nn.Linear(2, 8), nn.Linear(8, 3), nn.Linear(8, 1), scale=0.5)
    >>> losses = model(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]), torch.randn(6, 2))
    >>> losses.loss.backward()
    >>> model.predict(torch.randn(5, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        features: nn.Module,
        label_head: nn.Module,
        domain_head: nn.Module,
        label_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        scale: float | Tensor | Schedule | None = None,
        domain_weight: float = 1.0,
        domain_average: str = "domains",
        together: bool = True,
        ignore_index: int | None = None,
        record_norm: bool = False,
    ) -> None:
        super().__init__()
        parts = {"features": features, "label_head": label_head, "domain_head": domain_head}
        for name, part in parts.items():
            if not isinstance(part, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, not {type(part).__name__}")
        if label_loss is not None and (isinstance(label_loss, type) or not callable(label_loss)):
            raise TypeError(
                "label_loss must be a function of logits and labels, as nn.CrossEntropyLoss(), not "
                f"{label_loss!r}"
            )
        self.features, self.label_head, self.domain_head = features, label_head, domain_head
        self._take_reversal(scale, record_norm)
        self.domain_weight: float = domain_weight
        self.domain_average, self.together = domain_average, bool(together)
        found = ignored_by(label_loss) if ignore_index is None else ignore_index
        self.ignore_index: int = found
        self.label_loss = CrossEntropy(found) if label_loss is None else label_loss

    def _take_reversal(self, scale: Any, record_norm: bool) -> None:
        """Make the reversal, or find the one that the domain head begins with; refuse a second."""
        first, folded = the_folded_in(self)
        self._folded = folded is not None
        # Whether the first step has still to show that nothing of the head learns before it. A look
        # inside a compiled head would compile it twice.
        self._unplaced = self._folded and folded is not first and not hasattr(first, "_orig_mod")
        if folded is None:
            self.reversal: GradientReversal = GradientReversal(
                1.0 if scale is None else scale, record_norm=record_norm
            )
            return
        if scale is not None:
            folded.scale = scale
        folded.record_norm |= bool(record_norm)
        # Past nn.Module, which would save its weights under two names.
        self.__dict__["reversal"] = folded

    def _refuse_replaced(self) -> None:
        """ValueError where `model.reversal` is not what the domain head has by now."""
        # A replica of DataParallel reads λ of the layer that it is a replica of.
        if not getattr(self, "_is_replica", False):
            refuse_another(self.domain_head, self.reversal.scale if self._folded else None)

    def forward(self, source: Batches, labels: Batches, target: Batches) -> Losses:
        """Losses and accuracies of one training step.

        Parameters
        ----------
        source, labels : Tensor, or a sequence of them
            Inputs (n, …) and their labels (n, …), as `label_loss` takes them. Several source
            domains are a sequence each. Labels may stay on the CPU, where they are checked without
            waiting for a device, and follow by themselves.
        target : Tensor, or a sequence of them
            Inputs (m, …) without labels; a sequence for several target domains. Any m.

        Returns
        -------
        Losses

        Raises
        ------
        TypeError, ValueError
            A domain that is missing or empty, shapes that do not fit, labels out of range (seen
            where the labels are on the CPU, or on the way there by `fit`), a head that ends in a
            sigmoid or softmax: the domain head, or under cross-entropy the label head. A reversal
            that was put into the domain head, or taken from it, after the network was made. At the
            first step, unless compiled, a domain head in which a layer learns before its reversal.
        """
        self._refuse_replaced()
        sources, targets = _listed("source", source), _listed("target", target)
        answers = _listed("labels", labels)
        _check_batches(sources, answers, targets)
        sizes = [len(part) for part in (*sources, *targets)]
        found = self._features_of([*sources, *targets], sizes)
        labelled, _ = found.split([sum(sizes[: len(sources)]), sum(sizes[len(sources) :])])
        logits = _headed("label_head", self.label_head, labelled)
        truth = _joined("the labels", answers)
        check_labels(truth, logits, self.ignore_index)
        truth = truth.to(logits.device, kind_of(truth, logits), non_blocking=True)
        if type(self.label_loss) in (CrossEntropy, nn.CrossEntropyLoss):
            refuse_probabilities("label_head", self.label_head, logits, "the cross-entropy")
        label_loss = self.label_loss(logits, truth)
        if label_loss.dim() != 0:
            raise ValueError(
                f"label_loss must return a 0-dim tensor, got shape {tuple(label_loss.shape)}"
            )
        judged, weights = self._domain_inputs(found, sizes, logits)
        domain_loss, domain_accuracy = self._domain_loss(judged, sizes, weights)
        return Losses(
            label_loss + self.domain_weight * domain_loss,
            label_loss,
            domain_loss,
            accuracy(logits, truth, self.ignore_index),
            domain_accuracy,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "scale":
            # By the property at once: of a Parameter, nn.Module would take hold.
            object.__setattr__(self, name, value)
            return
        if name == "domain_weight":
            value = _checked_weight(value)
        if name == "domain_average" and value not in ("domains", "samples"):
            raise ValueError(f"domain_average must be 'domains' or 'samples', got {value!r}")
        super().__setattr__(name, value)

    @property
    def scale(self) -> Tensor:
        """λ, that of ``model.reversal``; set it by a number, a 0-dim tensor or a schedule.

        A number set under a schedule holds until the schedule's next ``step()``; set
        ``model.reversal.schedule = None`` to keep it.
        """
        return self.reversal.scale

    @scale.setter
    def scale(self, value: float | Tensor | Schedule) -> None:
        self.reversal.scale = value

    @property
    def schedule(self) -> Schedule | None:
        """The schedule of λ, to be stepped after each training step; None where λ has none."""
        return self.reversal.schedule

    def predict(self, x: Tensor | numpy.ndarray[Any, Any]) -> Tensor:
        """Label logits of `x`. The reversal and the domain head play no part.

        An array goes to the model's device, and NumPy's float64 takes its dtype, as in `fit`.
        """
        if isinstance(x, numpy.ndarray):
            device = next((p.device for p in self.parameters()), None)
            x = tensor_of(x, dtype_of(self)).to(device)
        return self.label_head(self.features(x))

    def _features_of(self, batches: list[Tensor], sizes: list[int]) -> Tensor:
        """The features of all domains, in order."""
        if self.together:
            what = "source and target, which go through as one batch,"
            joined = _joined(what, batches, "; pass together=False")
            found = _tensor_of("features", self.features(joined))
        else:
            parts = [_tensor_of("features", self.features(batch)) for batch in batches]
            found = _joined("the features of the domains", parts)
        if len(found) != sum(sizes):
            raise ValueError(
                f"features made {len(found)} samples of {sum(sizes)}: it must keep the batch "
                "dimension first"
            )
        return found

    def _domain_inputs(
        self, found: Tensor, sizes: list[int], logits: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What the domain head judges, and the weights of the samples."""
        return found if self._folded else self.reversal(found), None

    def _judge(self, judged: Tensor) -> Tensor:
        """What the domain head says; the first time, with a look at where its reversal stands."""
        if not self._unplaced or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return _headed("domain_head", self.domain_head, judged)
        start = judged.grad_fn
        with given_to(self.reversal) as given:
            logits = _headed("domain_head", self.domain_head, judged)
        refuse_learning_before(self.domain_head, given, start)
        self._unplaced = False
        return logits

    def _domain_loss(
        self, judged: Tensor, sizes: list[int], weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = self._judge(judged)
        if len(logits) != sum(sizes):
            raise ValueError(
                f"domain_head made {len(logits)} rows of {sum(sizes)}: it must keep the batch "
                "dimension first"
            )
        refuse_probabilities("domain_head", self.domain_head, logits, "the domain loss")
        shares = [None] * len(sizes) if weights is None else weights.split(sizes)
        losses, right = [], []
        for domain, (part, share) in enumerate(zip(logits.split(sizes), shares, strict=True)):
            each, hits = _judged(part, domain, len(sizes))
            if share is not None:
                each = each * share.reshape(-1, *[1] * (each.dim() - 1))
            losses.append(each)
            right.append(hits.mean())
        domain_accuracy = torch.stack(right).mean()
        if self.domain_average == "samples":
            return torch.cat([part.flatten() for part in losses]).mean(), domain_accuracy
        return torch.stack([part.mean() for part in losses]).mean(), domain_accuracy


def _checked_weight(value: object) -> float:
    weight = check_finite("domain_weight", value)
    if weight < 0:
        raise ValueError(f"domain_weight must be >= 0, got {value!r}: scale does the reversing")
    return weight


def _listed(name: str, given: object) -> list[Tensor]:
    parts = [given] if isinstance(given, Tensor) else given
    if not isinstance(parts, (list, tuple)) or not all(isinstance(p, Tensor) for p in parts):
        kind = type(given).__name__
        raise TypeError(f"{name} must be a tensor or a sequence of tensors, not {kind}")
    if not parts:
        raise ValueError(f"{name} has no domain: domain-adversarial training needs one at least")
    return list(parts)


def _check_batches(sources: list[Tensor], labels: list[Tensor], targets: list[Tensor]) -> None:
    for name, parts in (("source", sources), ("target", targets)):
        for part in parts:
            if part.dim() == 0 or len(part) == 0:
                raise ValueError(
                    f"the {name} batch of shape {tuple(part.shape)} has no sample: each domain "
                    "must be in every batch"
                )
    if len(labels) != len(sources):
        raise ValueError(f"{len(sources)} source domains come with {len(labels)} of labels")
    for part, answers in zip(sources, labels, strict=True):
        if answers.dim() == 0 or len(answers) != len(part):
            raise ValueError(
                f"{len(part)} source samples come with labels of shape {tuple(answers.shape)}"
            )


def _joined(what: str, parts: list[Tensor], cure: str = "") -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if len({tuple(part.shape[1:]) for part in parts}) > 1:
        listed = " and ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(f"{what} have different shapes: {listed}{cure}")
    return torch.cat(parts)


def _headed(name: str, head: nn.Module, found: Tensor) -> Tensor:
    """What a head makes of features that the other head shares."""
    if torch.compiler.is_compiling():
        return _tensor_of(name, head(found))
    try:
        return _tensor_of(name, head(found))
    except RuntimeError as error:
        if "modified inplace" not in str(error):
            raise
        raise ValueError(
            f"{name} overwrites its input, which both heads share: its first layer must not work "
            "in place (inplace=False)"
        ) from error


def _tensor_of(name: str, made: Any) -> Tensor:
    if not isinstance(made, Tensor):
        raise TypeError(f"{name} must return one tensor, not a {type(made).__name__}")
    return made


def _judged(logits: Tensor, domain: int, domains: int) -> tuple[Tensor, Tensor]:
    """The loss of each sample or pixel of one domain, and whether its domain was recognised."""
    outputs = 1 if logits.dim() == 1 else logits.shape[1]
    if outputs == 1 and domains == 2:
        truth = torch.full_like(logits, float(domain))
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        right = (logits > 0) == bool(domain)
    elif outputs == domains:
        shape = (logits.shape[0], *logits.shape[2:])
        place = torch.full(shape, domain, dtype=torch.long, device=logits.device)
        losses = F.cross_entropy(logits, place, reduction="none")
        right = logits.argmax(1) == domain
    else:
        wanted = "1 or 2" if domains == 2 else str(domains)
        raise ValueError(
            f"domain_head gives {outputs} outputs for {domains} domains; it must give {wanted}"
        )
    return losses, right.detach().float()
