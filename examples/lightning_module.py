"""DANN under PyTorch Lightning: nothing special is needed.

λ is a buffer, so that Lightning moves it and saves it; the schedule is stepped where the step is.
"""

import lightning
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyrevgrad.adversarial import DANN, GaninLearningRate, GaninSchedule


class Adapted(lightning.LightningModule):
    """A network, its optimizer, and what to log."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.network = DANN(
            nn.Sequential(nn.Linear(2, 16), nn.Tanh()),
            nn.Linear(16, 2),
            nn.Linear(16, 1),
            scale=GaninSchedule(steps),
            record_norm=True,
        )

    def training_step(self, batch, _):
        (x, y), (target,) = batch
        losses = self.network(x, y, target)
        self.log_dict(losses._asdict())
        return losses.loss

    def on_train_batch_end(self, *_):
        self.network.schedule.step()
        self.log_dict(self.network.reversal.readings())

    def on_save_checkpoint(self, checkpoint):
        checkpoint["schedule"] = self.network.schedule.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.network.schedule.load_state_dict(checkpoint["schedule"])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        rate = GaninLearningRate(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": rate, "interval": "step"},
        }


def loaders():
    """A labelled source and a target that is shifted."""
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    source = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 16, shuffle=True)
    target = DataLoader(TensorDataset(x + 1), 16, shuffle=True)
    return CombinedLoader([source, target], "max_size_cycle")


def train(epochs, folder=None, resume=None):
    """Train, and return the module and the trainer."""
    lightning.seed_everything(0, verbose=False)
    module = Adapted(steps=40)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=folder is not None,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, loaders(), ckpt_path=resume, weights_only=True if resume else None)
    return module, trainer


def main():
    module, trainer = train(epochs=10)
    for name, value in trainer.callback_metrics.items():
        print(f"{name} {value:.3f}")
    print(module.network.reversal)


if __name__ == "__main__":
    main()
