"""NP Merge: any LightningModule, trained through one alpha for each of its parameters.

Non-Uniform Parameter-Wise Model Merging (Orozco Camacho et al. 2024), Eq. 2.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_merge.aggregate import average
from lightning_merge.aggregate.flat import FlatLayout
from lightning_merge.aggregate.learned import interpolate_flat_, interpolated_weights
from lightning_merge.align import Matching, PermutationSpec
from lightning_merge.checkpoint import (
    StateDict,
    check_ingredients,
    digest,
    fit_names,
    prefixed,
    read_checkpoint,
)
from lightning_merge.errors import CheckpointError, ConfigError
from lightning_merge.loaders import example_inputs, statistics_batches
from lightning_merge.modules.adopt import adopt

Granularity = Literal["model", "layer", "channel", "parameter"]

_SAVED = "lightning_merge"

# What this class adds to the module's own attributes.
_OWN = (
    "_owners",
    "_layout",
    "_a",
    "_b",
    "_merged",
    "_segments",
    "_ingredients",
    "_matching",
    "_make_optimizer",
    "_make_scheduler",
    "_traced",
    "_module_class",
    "_buffers_of",
    "_rng",
)


class MergeModule(LightningModule):
    """Learns W = alpha * A + (1 - alpha) * B in place of the weights of a LightningModule.

    The object takes over the module's class, steps, hooks, metrics and hyper-parameters;
    all of them run on merged weights. Its only trainable parameter is `alpha_logits`
    (alpha = sigmoid(alpha_logits)); A and B are constants. When gradients are not being
    taken (validation, test, callbacks, checkpoints) the module's parameters hold the
    merged weights, frozen.

    A run that is resumed from a checkpoint of the end of an epoch goes on bit for bit; from
    one within an epoch, with another order of the batches that are left.

    A checkpoint holds the merged weights under the module's own names, so that the
    module's own class loads it without this package, and under `lightning_merge` what a
    resumed run needs: the logits, and B as it was aligned.

    Floating-point buffers (running statistics) are averaged once, at the start, and then
    live as the module's own; reset them after training (`BatchNormReset`). Integer
    buffers are those of A.

    Args:
        module: Any LightningModule with automatic optimization; its weights are replaced.
        checkpoints: The two ingredients: paths, or state dicts with the module's names.
        granularity: How many alphas there are: one for the `model` or one a `layer` (a
            learned soup), one a `channel` or one a `parameter` (NP Merge).
        matching: How B is aligned to A, on the module's own training data, when training
            starts. None if the ingredients are aligned already.
        alpha: The initial share of A.
        optimizer: Called with the list that holds `alpha_logits`.
        lr_scheduler: Called with the optimizer; stepped once an epoch.

    Raises:
        ConfigError: If there are not two ingredients, or the module optimizes manually.
        MergeError: If the ingredients cannot be read, differ in architecture, or hold NaN.
    """

    alpha_logits: nn.Parameter

    def __init__(
        self,
        module: LightningModule,
        checkpoints: Sequence[str | Path | Mapping[str, Tensor]],
        granularity: Granularity = "parameter",
        matching: Matching | None = None,
        alpha: float = 0.5,
        optimizer: OptimizerCallable = lambda logits: torch.optim.Adam(logits, lr=0.01),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        if not module.automatic_optimization:
            raise ConfigError(
                f"{type(module).__name__} optimizes manually: MergeModule needs a module with "
                "automatic_optimization = True"
            )
        if len(checkpoints) != 2:
            raise ConfigError(
                f"MergeModule merges two ingredients, not {len(checkpoints)}; merge more in "
                "successive pairs"
            )
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha is {alpha}: choose a number between 0 and 1")
        first, second = _read(checkpoints, module.state_dict())
        self._module_class: type[LightningModule]
        user = type(module)
        adopt(self, module)
        self._module_class = user
        owners = _owners(self)
        self._owners = owners
        self._layout = FlatLayout({name: self.get_parameter(name) for name in owners})
        self._a = self._layout.flatten(first)
        self._b = self._layout.flatten(second)
        self._merged = torch.empty_like(self._a)
        self._segments = (
            None if granularity == "parameter" else torch.tensor(self._layout.segments(granularity))
        )
        count = self._layout.size if self._segments is None else len(self._segments)
        self._ingredients = [digest(first), digest(second)]
        self._matching = matching
        self._make_optimizer = optimizer
        self._make_scheduler = lr_scheduler
        self._traced = False
        self._rng: Tensor | None = None
        # Needed until B is aligned: its statistics move with its units.
        self._buffers_of = [
            {name: value for name, value in state.items() if name not in owners}
            for state in (first, second)
        ]
        self._load_buffers(first, second)
        for name in owners:
            self.get_parameter(name).requires_grad_(False)
        initial = torch.logit(torch.tensor(alpha))
        self.alpha_logits = nn.Parameter(initial.repeat(count))
        self._bind()

    def alphas(self) -> StateDict:
        """The alpha of every element of every parameter, by name, in the parameters' shapes."""
        with torch.no_grad():
            flat = torch.sigmoid(self._flat_logits()).to(self._layout.dtype)
            return self._layout.named_views(flat.contiguous())

    def ingredients(self) -> tuple[StateDict, StateDict]:
        """The parameters of A and of the aligned B, by name, as they are being merged."""
        return self._layout.named_views(self._a), self._layout.named_views(self._b)

    def refresh(self) -> None:
        """Writes the weights that the present alphas give into the module's parameters."""
        self._untrace()
        with torch.no_grad():
            interpolate_flat_(self._merged, self._flat_logits(), self._a, self._b)

    # --- the module's own life, on merged weights

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own step, on weights through which gradients reach the alphas."""
        weights = interpolated_weights(
            self._flat_logits(), self._a, self._b, self._merged, self._layout
        )
        for places, weight in zip(self._owners.values(), weights, strict=True):
            for owner, attribute in places:
                owner._parameters[attribute] = weight  # type: ignore[assignment]
        self._traced = True
        return super().training_step(*args, **kwargs)

    def on_after_backward(self) -> None:
        """Puts the frozen parameters back, then the module's own hook."""
        self._untrace()
        super().on_after_backward()

    def train(self, mode: bool = True) -> "MergeModule":
        """Sets the mode; leaving training mode brings the parameters up to date."""
        super().train(mode)
        if not mode:
            self.refresh()
        return self

    def on_fit_start(self) -> None:
        """Resumes the random numbers, before the first epoch's order is drawn from them.

        Raises:
            ConfigError: If the strategy spawns or forks processes of its own.
        """
        if isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            raise ConfigError(
                "MergeModule: a strategy that spawns or forks cannot hand the alphas back; choose "
                "strategy ddp"
            )
        if self._rng is not None:
            torch.set_rng_state(self._rng)
            self._rng = None
        super().on_fit_start()

    def on_train_start(self) -> None:
        """Aligns B to A if a matching was given, then the module's own hook."""
        if self._matching is not None:
            self._align(self._matching)
            self._matching = None
        super().on_train_start()

    def configure_optimizers(self) -> Any:
        """The optimizer of the alphas; the module's own is not used."""
        optimizer = self._make_optimizer([self.alpha_logits])
        if self._make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._make_scheduler(optimizer)}

    # --- what is stored

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The merged weights and the buffers, under the module's own names."""
        if "alpha_logits" in self._parameters:
            self.refresh()
        state = super().state_dict(*args, **kwargs)
        state.pop(f"{kwargs.get('prefix', '')}alpha_logits", None)
        return state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the alphas and the aligned B beside the merged weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_SAVED] = {
            "alpha_logits": self.alpha_logits.detach().clone(),
            "ingredients": list(self._ingredients),
            "alphas": self.alphas(),
            "b": self._b.clone(),
            "aligned": self._matching is None,
            "rng": torch.get_rng_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes alphas and B back from a checkpoint of this class."""
        saved = checkpoint.get(_SAVED)
        if saved is None:
            raise CheckpointError(
                "the checkpoint holds no alphas: resume from one that a MergeModule wrote"
            )
        if saved["ingredients"] != self._ingredients:
            raise CheckpointError(
                "the checkpoint was made from other ingredients: resume with the checkpoints "
                "that the run was started with"
            )
        if saved["alpha_logits"].shape != self.alpha_logits.shape:
            raise CheckpointError(
                "the checkpoint has another granularity: resume with that of the first run"
            )
        # Parameters that `load_state_dict` would miss, since they are kept beside.
        checkpoint["state_dict"]["alpha_logits"] = saved["alpha_logits"]
        self._b.copy_(saved["b"])
        if saved["aligned"]:
            self._matching = None
        self._rng = saved["rng"]
        super().on_load_checkpoint(checkpoint)

    # --- memory

    def _apply(self, fn: Any, recurse: bool = True) -> "MergeModule":
        # A step that failed leaves traced weights behind.
        self._untrace()
        super()._apply(fn, recurse)
        self._a, self._b, self._merged = fn(self._a), fn(self._b), fn(self._merged)
        if self._segments is not None:
            self._segments = self._segments.to(self._a.device)
        self._bind()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._owners = _owners(self)
        self._bind()

    def _bind(self) -> None:
        # The module's parameters become views of one buffer, which one pass then fills.
        for name, view in self._layout.named_views(self._merged).items():
            self.get_parameter(name).data = view
        self.refresh()

    def _untrace(self) -> None:
        if not self._traced:
            return
        for places, view in zip(
            self._owners.values(), self._layout.views(self._merged), strict=True
        ):
            parameter = nn.Parameter(view, requires_grad=False)
            for owner, attribute in places:
                owner._parameters[attribute] = parameter
        self._traced = False

    def _flat_logits(self) -> Tensor:
        if self._segments is None:
            return self.alpha_logits
        return self.alpha_logits.repeat_interleave(self._segments, output_size=self._layout.size)

    def _load_buffers(self, first: StateDict, second: StateDict) -> None:
        mean = average([first, second])
        for name, buffer in self.named_buffers():
            if name in mean:
                buffer.copy_(mean[name])

    def _align(self, matching: Matching) -> None:
        batches = statistics_batches(self.trainer)
        first, second = (self._ingredient(index) for index in (0, 1))
        shown = self.trainer.is_global_zero
        # Loaders draw random numbers; what is trained must not depend on that.
        with isolate_rng():
            spec = PermutationSpec.from_model(first, example_inputs(batches, self.device))
            aligned = matching.align(spec, first, second, batches, progress=shown)
        # Sums on several devices may differ in the last bit: one rank decides for all.
        aligned = self.trainer.strategy.broadcast(aligned)
        self._b.copy_(self._layout.flatten(aligned, self._b.device))
        self._load_buffers(first.state_dict(), aligned)
        self.refresh()

    def _ingredient(self, index: int) -> LightningModule:
        flat, buffers = ((self._a, self._b)[index], self._buffers_of[index])
        state = {name: value for name, value in self.__dict__.items() if name not in _OWN}
        state["_trainer"] = None
        state["_parameters"] = {
            name: value for name, value in self._parameters.items() if name != "alpha_logits"
        }
        copied: LightningModule = object.__new__(self._module_class)
        copied.__dict__.update(copy.deepcopy(state))
        copied.load_state_dict({**self._layout.named_views(flat), **buffers})
        return copied.eval()


def _read(
    checkpoints: Sequence[str | Path | Mapping[str, Tensor]], expected: Mapping[str, Tensor]
) -> list[StateDict]:
    states, names = [], []
    for position, given in enumerate(checkpoints, start=1):
        if isinstance(given, Mapping):
            states.append(dict(given))
            names.append(f"ingredient {position}")
        else:
            states.append(read_checkpoint(given).state_dict)
            names.append(str(given))
    check_ingredients([prefixed(state, expected) for state in states], names)
    return [fit_names(state, expected, name) for state, name in zip(states, names, strict=True)]


def _owners(module: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every place that holds each parameter; tied ones have several."""
    names = {
        id(parameter): name
        for name, parameter in module.named_parameters()
        if name != "alpha_logits"
    }
    owners: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names.values()}
    for owner in module.modules():
        for attribute, parameter in owner._parameters.items():
            if id(parameter) in names:
                owners[names[id(parameter)]].append((owner, attribute))
    return owners
