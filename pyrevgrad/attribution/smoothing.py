"""SmoothGrad: the mean of a method's maps over noisy copies of the input. Imports the targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_finite, is_whole
from ..swapping.leaving import drawing
from .methods import Attribution
from .targets import Inputs, as_tuple, rows


class SmoothGrad(Attribution):
    """The mean map over noisy inputs (Smilkov et al. 2017, arXiv 1706.03825, section 3.1).

    ``M̂(x) = 1/n Σ M(x + N(0, σ²))`` with ``σ = spread·(max x − min x)`` of each sample: one of a
    single number has no range and gets no noise. Maps in half types are added up in float32.

    Parameters
    ----------
    method : Attribution
        Any class of this package, or any object with Captum's ``attribute``.
    samples : int
        n; the paper finds little gain beyond 50.
    spread : float
        σ as a share of the input's range; .1 to .2 in the paper.
    seed : int
        Of the noise, and of what the model draws itself, as by dropout: other numbers in each
        sample. Two calls give the same.
    progress : bool
        Show a bar (needs tqdm).

    Raises
    ------
    TypeError, ValueError
        `method` has no `attribute`, `samples` is no whole number or < 1, `spread` no finite number
        or < 0.

    Examples
    --------
    >>> from pyrevgrad.attribution import Saliency
    >>> method = SmoothGrad(Saliency(torch.nn.Linear(2, 1)), samples=3)
    >>> method.attribute(torch.randn(4, 2)).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        method: Any,
        samples: int = 50,
        spread: float = 0.15,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        if not callable(getattr(method, "attribute", None)):
            raise TypeError(
                "method must be a method of attribution such as GuidedBackprop(model), not "
                f"{type(method).__name__}"
            )
        if not is_whole(samples):
            raise TypeError(f"samples must be a whole number, not {type(samples).__name__}")
        if samples < 1:
            raise ValueError(f"samples must be >= 1, got {samples}")
        if check_finite("spread", spread) < 0:
            raise ValueError(f"spread must be >= 0, got {spread}")
        self.method, self.samples, self.spread = method, samples, spread
        self.seed, self.progress = seed, progress

    def attribute(self, inputs: Inputs, *chosen: Any, **options: Any) -> Any:
        """As the method's own `attribute`, which gets the rest, a target or neuron, as it is."""
        given = as_tuple(inputs)
        noise = [torch.Generator(x.device).manual_seed(self.seed + i) for i, x in enumerate(given)]
        seeding = torch.Generator().manual_seed(self.seed)
        seeds = torch.randint(2**63 - 1, (self.samples,), generator=seeding).tolist()
        sums: list[Tensor] = []
        for i in self._rounds():
            noisy = tuple(
                x + self._width(x) * _standard_normal(x, own)
                for x, own in zip(given, noise, strict=True)
            )
            at = noisy if isinstance(inputs, tuple) else noisy[0]
            # Else each would find the same random state, and so the same dropout.
            with drawing(seeds[i]):
                found = self.method.attribute(at, *chosen, **options)
            parts = found if isinstance(found, tuple) else (found,)
            dtypes = [part.dtype for part in parts]
            wide = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
            sums = [a + b for a, b in zip(sums, wide, strict=True)] if sums else wide
        means = tuple((a / self.samples).to(to) for a, to in zip(sums, dtypes, strict=True))
        return means if isinstance(inputs, tuple) else means[0]

    def _rounds(self) -> Any:
        rounds = range(self.samples)
        if not self.progress:
            return rounds
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ImportError('progress=True needs tqdm: pip install "pyrevgrad[demo]"') from error
        return tqdm(rounds, unit="map", desc="SmoothGrad")

    def _width(self, x: Tensor) -> Tensor:
        of = rows(x.detach())
        width = self.spread * (of.amax(1) - of.amin(1))
        return width.reshape(x.shape[:1] + (1,) * (x.dim() - 1))


def _standard_normal(x: Tensor, own: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=own, dtype=x.dtype, device=x.device)
