"""A uniform soup of the last epochs of one training run."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_merge.aggregate import average
from lightning_merge.callbacks.candidate import check_soups, copy_of
from lightning_merge.callbacks.soup_files import (
    read_ingredient,
    remove_ingredient,
    soup_folder,
    write_ingredient,
    write_soup,
)
from lightning_merge.checkpoint import tensors_of
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import statistics_share
from lightning_merge.modules.module_state import put
from lightning_merge.recalibrate import reset_batchnorm


class LastEpochsSoup(Callback):
    """Averages the weights of the last epochs when training ends, and writes their soup.

    The end of each epoch is written to a file; only the last ones stay. When training ends,
    early or not, their average, with BatchNorm statistics reset on training data, is written as
    `last_epochs_soup.ckpt`, which the module's own class loads. Training does not notice.

    Lightning's own `WeightAveraging` keeps a running mean from an epoch on that has to be known
    beforehand, validates it instead of the raw weights, and does not refresh BatchNorm.

    Under DDP rank 0 alone writes, and all ranks read: the folder must be one that they share.

    Args:
        last: How many epochs.
        dirpath: The folder to write to; `last_epochs_soup` in the logger's folder, or else in
            `default_root_dir`, if not given.

    Attributes:
        best_path: The file that the soup was written to; None before training ends.

    Raises:
        ConfigError: If `last` is below 1, or module or strategy are refused (see `GreedySoup`).
    """

    def __init__(self, last: int = 5, dirpath: str | Path | None = None) -> None:
        if last < 1:
            raise ConfigError(f"LastEpochsSoup: last is {last}; choose 1 or more")
        self.last = last
        self.dirpath = dirpath
        self.best_path: Path | None = None
        self._window: list[str] = []
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what soups cannot be made of."""
        if stage == "fit":
            check_soups("LastEpochsSoup", trainer, pl_module)
            self._folder = soup_folder(trainer, self.dirpath, "last_epochs_soup")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says which epochs of a resumed run are gone; forgets those of another run."""
        del pl_module
        if trainer.global_step == 0:
            self._window = []
        for path in [path for path in self._window if not Path(path).is_file()]:
            rank_zero_warn(f"LastEpochsSoup: {path} is gone; the soup goes on without it")
            self._window.remove(path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the epoch, and deletes the one that is too old."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._window.append(str(write_ingredient(trainer, pl_module, self._folder)))
        while len(self._window) > self.last:
            remove_ingredient(trainer, self._window.pop(0))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Averages, resets and writes."""
        if not self._window:
            return
        soup = copy_of(pl_module)
        put(soup, average([read_ingredient(path, soup) for path in self._window]))
        with isolate_rng():
            reset_batchnorm(soup, statistics_share(trainer))
        path = self._folder / "last_epochs_soup.ckpt"
        self.best_path = write_soup(
            trainer, path, tensors_of(soup), {"ingredients": list(self._window)}
        )

    def state_dict(self) -> dict[str, Any]:
        """The paths of the last epochs."""
        return {"window": list(self._window)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them back."""
        self._window = list(state_dict["window"])
