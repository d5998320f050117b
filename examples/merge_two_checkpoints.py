"""Merge two checkpoints of an existing project: NP Merge, one learned alpha a parameter."""

from pathlib import Path

from lightning.pytorch import Trainer
from project import QUIET, DigitsClassifier, loaders, train

from lightning_merge import ActivationMatching, BatchNormReset, MergeModule

# The two checkpoints that you already have.
for seed, path in enumerate(["a.ckpt", "b.ckpt"]):
    if not Path(path).exists():
        train(seed, path)

train_loader, val_loader = loaders()
merged = MergeModule(
    DigitsClassifier(),
    checkpoints=["a.ckpt", "b.ckpt"],
    matching=ActivationMatching(),  # b's units are brought into a's order first
)
trainer = Trainer(
    max_epochs=3, accelerator="cpu", callbacks=[BatchNormReset()], logger=False, **QUIET
)
trainer.fit(merged, train_loader, val_loader)
trainer.save_checkpoint("merged.ckpt")

# The merged checkpoint is one of your own class.
for path in ("a.ckpt", "b.ckpt", "merged.ckpt"):
    module = DigitsClassifier.load_from_checkpoint(path)
    (metrics,) = trainer.validate(module, val_loader, verbose=False)
    print(f"{path}: {metrics['val_accuracy']:.4f}")
