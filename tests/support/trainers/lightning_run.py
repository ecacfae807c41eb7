"""A real run of Lightning's Trainer on two processes.

python -m tests.support.trainers.lightning_run FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from tests.support.trainers.models import build


class Module(lightning.LightningModule):
    """A causal model as an attribute, sharded with FSDP2."""

    model: Any

    def configure_model(self) -> None:
        """Called in each process, once the mesh stands."""
        if not hasattr(self, "model"):
            self.model = build("llama")
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        """The loss."""
        loss: torch.Tensor = self.model(input_ids=batch, labels=batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main(folder: Path) -> None:
    """One step, then Lightning's own checkpoint of it."""
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=ModelParallelStrategy(), max_steps=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder),
    )  # fmt: skip
    module = Module()
    data = torch.arange(3, 35).reshape(2, 16)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=1))
    full = get_model_state_dict(module.model, options=StateDictOptions(full_state_dict=True))
    if trainer.is_global_zero:
        torch.save(full, folder / "expected.pt")
        config = module.model.config
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder / "assets")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
