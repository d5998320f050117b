"""NP Merge on two processes (DDP); on a machine with GPUs, one process for each of them.

Lightning starts the second process by running this script once more: what must happen once
only belongs under `is_global_zero`.
"""

import os
from pathlib import Path

from lightning.pytorch import Trainer
from project import QUIET, DigitsClassifier, loaders, train

from lightning_merge import ActivationMatching, BatchNormReset, MergeModule

if __name__ == "__main__":
    # The two checkpoints that you already have; the second process is started after this.
    if "LOCAL_RANK" not in os.environ:
        for seed, path in enumerate(["a.ckpt", "b.ckpt"]):
            if not Path(path).exists():
                train(seed, path)

    # 32 examples on each of two processes: a step sees 64, as it would on one.
    train_loader, val_loader = loaders(batch_size=32)
    merged = MergeModule(
        DigitsClassifier(), checkpoints=["a.ckpt", "b.ckpt"], matching=ActivationMatching()
    )
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",  # or "gpu"
        devices=2,
        strategy="ddp",
        callbacks=[BatchNormReset()],  # each batch is read on one process; all get the result
        logger=False,
        **QUIET,
    )
    trainer.fit(merged, train_loader, val_loader)
    trainer.save_checkpoint("merged.ckpt")  # process 0 writes
    if trainer.is_global_zero:
        print(f"{trainer.world_size} processes: merged.ckpt")
