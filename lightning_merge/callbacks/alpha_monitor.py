"""What the alphas of a MergeModule do while they are learned."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_merge.errors import ConfigError
from lightning_merge.loggers import log_histogram, log_table

PREFIX = "alpha/"
"""Of a layer's mean alpha among the metrics."""


class AlphaMonitor(Callback):
    """Logs the alphas of every layer, to whatever logger the Trainer has.

    At the end of each training epoch the mean alpha of each layer is logged as
    `alpha/<layer>` (every logger), and the distribution as a histogram (Weights & Biases,
    TensorBoard). When training ends, a table with mean, standard deviation, minimum,
    maximum and the share of alphas above one half (Weights & Biases, TensorBoard; `alphas.csv`
    beside the metrics of a CSV logger). Where more than two ingredients are merged, each has
    alphas of its own: `alpha/<layer>/<ingredient>`, counted from 1.

    Raises:
        ConfigError: When fitting starts, if the module has no alphas.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a module without alphas."""
        del trainer
        if not callable(getattr(pl_module, "alphas_by_ingredient", None)):
            raise ConfigError(
                f"AlphaMonitor: {type(pl_module).__name__} has no alphas; use it with MergeModule"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs means and histograms."""
        alphas = _by_ingredient(pl_module)
        means = {f"{PREFIX}{name}": alpha.mean() for name, alpha in alphas.items()}
        pl_module.log_dict(means, sync_dist=False)
        if trainer.is_global_zero:
            for name, alpha in alphas.items():
                for logger in trainer.loggers:
                    log_histogram(logger, f"alphas/{name}", alpha, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the table."""
        if trainer.is_global_zero:
            rows = alpha_rows(_by_ingredient(pl_module))
            for logger in trainer.loggers:
                log_table(logger, "alphas", rows)


def _by_ingredient(module: LightningModule) -> dict[str, Any]:
    first, *others = module.alphas_by_ingredient()  # type: ignore[operator]
    if not others:
        return dict(first)
    # The mean over all ingredients would tell nothing: they add up to 1.
    return {
        f"{name}/{index}": alpha
        for name in first
        for index, alpha in enumerate((one[name] for one in (first, *others)), 1)
    }


def alpha_rows(alphas: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each layer: how many alphas it has and how they are distributed."""
    return [
        {
            "layer": name,
            "alphas": alpha.numel(),
            "mean": float(alpha.mean()),
            "std": float(alpha.std(correction=0)),
            "min": float(alpha.min()),
            "max": float(alpha.max()),
            "above_half": float((alpha > 0.5).float().mean()),
        }
        for name, alpha in alphas.items()
    ]
