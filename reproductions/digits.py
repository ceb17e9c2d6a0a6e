"""Real digits to digits under a shift: target accuracy with and without adaptation.

scikit-learn's 1797 digits (8×8), split into source, held-out source, target and unseen target with
no image in two of them; the features are an MLP 64-128-64. The settings are the demo's, with
Ganin's λ; accuracy is that of the last epoch on target images that no step has seen.
"""

from __future__ import annotations

import torch

from pyrevgrad.adaptation import networks
from pyrevgrad.adaptation.datasets import digits_domains
from pyrevgrad.adversarial import DANN, GaninSchedule, fit

BATCH, RATE, MOMENTUM, EPOCHS = 32, 0.2, 0.5, 100
SEEDS = (0, 1, 2, 3, 4)


def network(seed: int, steps: int, adapted: bool) -> DANN:
    """The network with the initial weights of `seed`, the same with and without adaptation."""
    method = "dann" if adapted else "none"
    return networks.build(method, torch.Size([64]), 10, GaninSchedule(steps), 1.0, seed)


def train(seed: int, shift: str, adapted: bool, epochs: int = EPOCHS) -> list[dict[str, float]]:
    """Train once; each epoch's record, with ``validation_accuracy`` and ``target_accuracy``."""
    data = digits_domains(seed, shift)
    steps = epochs * -(-len(data.source[0]) // BATCH)
    model = network(seed, steps, adapted)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    history = fit(
        model, data.source, data.target, epochs=epochs, batch_size=BATCH, optimizer=optimizer,
        validation=data.held_out, scores={"target": data.target_test}, seed=seed, progress=False,
    )  # fmt: skip
    return history.epochs
