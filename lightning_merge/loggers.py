"""Sends tables, figures, histograms and configurations to whatever logger there is.

Weights & Biases supports all of them; TensorBoard supports figures, histograms and tables (as
text); the CSV logger stores tables as files beside its metrics. Without a logger nothing happens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_merge.files import write_csv

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure


def log_table(logger: "Logger | None", name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Logs rows under a name; the columns are those of all rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[row.get(column) for column in columns] for row in rows]
    kind = type(logger).__name__
    if kind == "WandbLogger":
        logger.log_table(key=name, columns=columns, data=cells)  # type: ignore[union-attr]
    elif kind == "TensorBoardLogger":
        lines: list[list[Any]] = [columns, ["---"] * len(columns), *cells]
        text = "\n".join(" | ".join(str(cell) for cell in line) for line in lines)
        logger.experiment.add_text(name, text)  # type: ignore[union-attr]
    elif kind == "CSVLogger":
        write_csv(Path(logger.log_dir) / f"{name}.csv", rows)  # type: ignore[union-attr, arg-type]


def log_figure(logger: "Logger | None", name: str, figure: "Figure") -> None:
    """Logs a figure under a name."""
    kind = type(logger).__name__
    if kind == "WandbLogger":
        logger.log_image(key=name, images=[figure])  # type: ignore[union-attr]
    elif kind == "TensorBoardLogger":
        logger.experiment.add_figure(name, figure, 0)  # type: ignore[union-attr]
    elif kind == "MLFlowLogger":
        run = logger.run_id  # type: ignore[union-attr]
        logger.experiment.log_figure(run, figure, f"{name}.png")  # type: ignore[union-attr]


def log_histogram(logger: "Logger | None", name: str, values: Any, step: int) -> None:
    """Logs the distribution of a tensor's values under a name."""
    kind = type(logger).__name__
    if kind == "WandbLogger":
        import wandb

        histogram = wandb.Histogram(values.float().cpu().numpy())
        logger.experiment.log({name: histogram, "trainer/global_step": step})  # type: ignore[union-attr]
    elif kind == "TensorBoardLogger":
        logger.experiment.add_histogram(name, values, step)  # type: ignore[union-attr]


def log_config(logger: "Logger | None", config: Mapping[str, Any]) -> None:
    """Logs a nested configuration as the run's hyper-parameters."""
    if type(logger).__name__ == "WandbLogger":
        logger.experiment.config.update(dict(config), allow_val_change=True)  # type: ignore[union-attr]
    elif logger is not None:
        logger.log_hyperparams(dict(config))
