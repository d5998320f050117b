"""Add a greedy soup of the epochs to a Trainer that you already have."""

from lightning.pytorch import Trainer, seed_everything
from project import QUIET, DigitsClassifier, loaders

from lightning_merge import GreedySoup

seed_everything(0, verbose=False)
train_loader, val_loader = loaders()

# The one line that is new. Training is bit for bit what it was without it.
soup = GreedySoup("val_accuracy", reset_batchnorm=True)

trainer = Trainer(max_epochs=6, accelerator="cpu", callbacks=[soup], logger=False, **QUIET)
trainer.fit(DigitsClassifier(), train_loader, val_loader)

for row in soup.rows():
    print("kept   " if row["kept"] else "dropped", row["ingredient"], f"{row['alone']:.4f} alone")
print(f"last epoch: {trainer.callback_metrics['val_accuracy']:.4f}")
print(f"best soup:  {soup.best_score:.4f}, in {soup.best_path.name}")

module = DigitsClassifier.load_from_checkpoint(soup.best_path)
(metrics,) = trainer.validate(module, val_loader, verbose=False)
print(f"loaded:     {metrics['val_accuracy']:.4f}")
