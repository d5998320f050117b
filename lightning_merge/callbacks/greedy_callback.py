"""A greedy soup of the epochs of one training run, or of checkpoints that exist.

Wortsman et al. 2022, "Model soups", Recipe 1.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_merge.aggregate.greedy_search import Trial, greedy_soup
from lightning_merge.callbacks.candidate import CandidateValidation, check_soups
from lightning_merge.callbacks.soup_files import (
    read_ingredient,
    remove_ingredient,
    soup_folder,
    write_ingredient,
    write_soup,
)
from lightning_merge.checkpoint import StateDict, digest, tensors_of
from lightning_merge.errors import ConfigError
from lightning_merge.loggers import log_table


class GreedySoup(Callback):
    """Averages the epochs (or checkpoints) that improve the average on validation data.

    At each validation of every n-th epoch the weights are written to a file, and the soup of
    the files is searched anew: from the best ingredient to the worst, each joins if the
    monitored metric is strictly better with it. The soup's metric is logged as
    `<monitor>_soup`, beside that of the raw weights. Whenever it is better than ever before
    the soup is written, as `greedy_soup.ckpt`, which the module's own class loads.

    Training does not notice: weights, buffers, metrics, optimizer and random numbers are those
    of a run without it. Candidates are validated in copies of the module, by its own
    `validation_step` and hooks; it costs one more validation for the ingredient, and at most
    `top_k - 1` for the soups (fewer where a soup has been validated before), and the memory of
    two copies of the network meanwhile.

    With `checkpoints` nothing is collected: the soup of those files is searched once, when
    training ends, or in `trainer.validate`.

    Under DDP each validation example is counted once, and rank 0 alone writes; all ranks read,
    so that the folder must be one that they share. Strategies that divide the weights
    (FSDP, DeepSpeed, ModelParallel) are refused, and so is MergeModule.

    A resumed run goes on with the ingredients and the best soup of its checkpoint. When training
    (or `trainer.validate`) ends, a line reports what the best soup is made of.

    Args:
        monitor: The name under which the module logs the metric in validation.
        mode: Whether more (`max`) or less (`min`) of it is better.
        every_n_epochs: How often an ingredient is collected.
        top_k: How many ingredients are kept, the best ones by their own metric; None for all.
        checkpoints: Files to make the soup of instead: paths, or `best` for those that the
            Trainer's ModelCheckpoint keeps by their metric (`save_top_k`).
        reset_batchnorm: Whether the BatchNorm statistics of each soup are reset on training
            data; one pass of it for each candidate. Single ingredients keep theirs.
        dirpath: The folder to write to; `greedy_soup` in the logger's folder, or else in
            `default_root_dir`, if not given.

    Attributes:
        best_score: The metric of the best soup so far; None before the first one.
        best_path: The file that it was written to.
        best_ingredients: The paths of what it is the average of.
        trace: The last search, a `Trial` for each ingredient; `candidate` counts `ingredients`.
        ingredients: The paths of the last search.

    Raises:
        ConfigError: If an argument is out of range, the module or strategy is refused, there
            is no validation data, or the metric is not logged.
        MergeError: If one of `checkpoints` cannot be read or does not fit the module.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"] = "max",
        every_n_epochs: int = 1,
        top_k: int | None = 5,
        checkpoints: Sequence[str | Path] | Literal["best"] | None = None,
        reset_batchnorm: bool = False,
        dirpath: str | Path | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"GreedySoup: mode is '{mode}'; choose min or max")
        for name, value in (("every_n_epochs", every_n_epochs), ("top_k", top_k)):
            if value is not None and value < 1:
                raise ConfigError(f"GreedySoup: {name} is {value}; choose 1 or more")
        if isinstance(checkpoints, str) and checkpoints != "best":
            raise ConfigError(
                f"GreedySoup: checkpoints is '{checkpoints}'; give a list of paths, or 'best'"
            )
        self.monitor, self.mode = monitor, mode
        self.every_n_epochs, self.top_k = every_n_epochs, top_k
        self.checkpoints = checkpoints
        self.reset_batchnorm = reset_batchnorm
        self.dirpath = dirpath
        self.best_score: float | None = None
        self.best_path: Path | None = None
        self.best_ingredients: list[str] = []
        self.trace: list[Trial] = []
        self.ingredients: list[str] = []
        self._sign = 1.0 if mode == "max" else -1.0
        self._pool: dict[str, float] = {}
        self._known: dict[str, float] = {}
        self._validation: CandidateValidation | None = None
        self._folder = Path()

    @property
    def state_key(self) -> str:
        """One state for each monitored metric, so that there can be several of these."""
        return f"GreedySoup[{self.monitor}, {self.mode}, {self.checkpoints}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what soups cannot be made of."""
        if stage not in ("fit", "validate"):
            return
        check_soups("GreedySoup", trainer, pl_module)
        self._folder = soup_folder(trainer, self.dirpath, "greedy_soup")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a run without validation."""
        del pl_module
        if not trainer.enable_validation:
            raise ConfigError(
                f"GreedySoup: '{self.monitor}' needs validation data; give the Trainer a loader "
                "of it"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says which ingredients of a resumed run are gone; forgets those of another run."""
        del pl_module
        if trainer.global_step == 0:
            self.load_state_dict({"pool": {}, "known": {}, "best_score": None, "best_path": None})
        gone = [path for path in self._pool if not Path(path).is_file()]
        for path in gone:
            rank_zero_warn(f"GreedySoup: {path} is gone; the soup goes on without it")
            del self._pool[path]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the module, before validation leaves traces in it."""
        if self._searches(trainer):
            self._validation = CandidateValidation(trainer, pl_module, self.monitor)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the ingredient, searches the soup and logs its metric."""
        validation, self._validation = self._validation, None
        if validation is None:
            return
        if self.checkpoints is None:
            self._collect(trainer, pl_module, validation)
            pool = dict(self._pool)
        else:
            pool = self._given(trainer, validation)
        score = self._search(trainer, validation, pool)
        several = trainer.world_size > 1
        pl_module.log(
            f"{self.monitor}_soup", score, batch_size=1, sync_dist=several, add_dataloader_idx=False
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Searches the soup of `checkpoints`; hands the trace to the loggers."""
        if self.checkpoints is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            validation = CandidateValidation(trainer, pl_module, self.monitor)
            score = self._search(trainer, validation, self._given(trainer, validation))
            for logger in trainer.loggers:
                logger.log_metrics({f"{self.monitor}_soup": score}, trainer.global_step)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                log_table(logger, "greedy_soup", self.rows())
        rank_zero_info(self._report())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the soup of `trainer.validate`."""
        del pl_module
        if trainer.state.fn == "validate" and self.checkpoints is not None:
            rank_zero_info(self._report())

    def rows(self) -> list[dict[str, Any]]:
        """The trace of the last search as a table: a row for each ingredient, as it was tried."""
        return [
            {
                "ingredient": Path(self.ingredients[trial.candidate]).name,
                "alone": self._sign * trial.alone,
                "soup": math.nan if trial.metric is None else self._sign * trial.metric,
                "kept": trial.kept,
            }
            for trial in self.trace
        ]

    def state_dict(self) -> dict[str, Any]:
        """The ingredients' paths and metrics, and the best soup."""
        return {
            "pool": dict(self._pool),
            "known": dict(self._known),
            "best_score": self.best_score,
            "best_path": None if self.best_path is None else str(self.best_path),
            "best_ingredients": list(self.best_ingredients),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them back."""
        self._pool = dict(state_dict["pool"])
        self._known = dict(state_dict["known"])
        self.best_score = state_dict["best_score"]
        path = state_dict["best_path"]
        self.best_path = None if path is None else Path(path)
        self.best_ingredients = list(state_dict.get("best_ingredients", ()))

    def _report(self) -> str:
        if self.best_score is None:
            return "GreedySoup: no soup, for no ingredient has been validated"
        names = ", ".join(Path(path).name for path in self.best_ingredients)
        alone = [trial.alone for trial in self.trace]
        single = f" ({self._sign * max(alone):.4g} of the best single one)" if alone else ""
        return (
            f"GreedySoup: averaged {len(self.best_ingredients)} ({names}): {self.monitor} "
            f"{self.best_score:.4g}{single}; written to {self.best_path}"
        )

    def _searches(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        if self.checkpoints is not None:
            return trainer.state.fn == "validate"
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        return trainer.state.fn == "fit" and due

    def _collect(
        self, trainer: Trainer, module: LightningModule, validation: CandidateValidation
    ) -> None:
        alone = self._sign * validation(tensors_of(module))
        if math.isnan(alone):
            return
        self._pool[str(write_ingredient(trainer, module, self._folder))] = alone
        for path in sorted(self._pool, key=lambda path: -self._pool[path])[self.top_k :]:
            if self.top_k is not None:
                del self._pool[path]
                remove_ingredient(trainer, path)

    def _given(self, trainer: Trainer, validation: CandidateValidation) -> dict[str, float]:
        if self.checkpoints == "best":
            kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
            paths = [path for callback in kept for path in callback.best_k_models]
        else:
            paths = [str(path) for path in self.checkpoints or ()]
        if not paths:
            raise ConfigError(
                "GreedySoup: there are no checkpoints to make a soup of; give paths, or a "
                "ModelCheckpoint with monitor and save_top_k"
            )
        module = validation.template
        return {path: self._sign * validation(read_ingredient(path, module)) for path in paths}

    def _search(
        self, trainer: Trainer, validation: CandidateValidation, pool: dict[str, float]
    ) -> float:
        if not pool:
            return math.nan

        def evaluate(state: StateDict) -> float:
            key = digest(state)
            if key not in self._known:
                self._known[key] = self._sign * validation(state, self.reset_batchnorm)
            return self._known[key]

        self.ingredients = list(pool)
        sources = [partial(read_ingredient, path, validation.template) for path in pool]
        soup, self.trace = greedy_soup(sources, evaluate, list(pool.values()))
        kept = [trial for trial in self.trace if trial.kept and trial.metric is not None]
        score = kept[-1].metric or 0.0
        if self.best_score is None or score > self._sign * self.best_score:
            if self.reset_batchnorm and len(kept) > 1:
                soup = tensors_of(validation.build(soup, reset=True))
            self.best_score = self._sign * score
            self.best_ingredients = [self.ingredients[trial.candidate] for trial in kept]
            about = {
                "monitor": self.monitor,
                "score": self.best_score,
                "ingredients": list(self.best_ingredients),
            }
            self.best_path = self._folder / "greedy_soup.ckpt"
            write_soup(trainer, self.best_path, soup, about)
        return self._sign * score
