"""What modules have in common whose weights follow from a few learned numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_merge.aggregate import average
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import CheckpointError, ConfigError
from lightning_merge.modes import caching_modules, clear_caches
from lightning_merge.modules.adopt import adopt
from lightning_merge.modules.merging.flat_ingredients import FlatIngredients, parameter_places
from lightning_merge.modules.merging.own_training import rates_in_view
from lightning_merge.modules.merging.read_ingredients import Ingredients
from lightning_merge.modules.merging.resume import RunState
from lightning_merge.modules.merging.strategies import (
    refuse_averaging,
    refuse_sharding,
    refuse_spawning,
)
from lightning_merge.modules.module_state import put

SAVED = "lightning_merge"
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


@dataclass
class Learned:
    """All that is ours in an adopted module, under one name that its class has not.

    Attributes:
        flat: The ingredients, and their merge.
        places: Where each merged parameter is an attribute, by name.
        frozen: The parameters that are there when the weights are not traced, in this order.
        kept: Which ingredient a tensor that is not merged is taken from, by name.
        digests: The SHA-256 of each ingredient, as it was given.
        make_optimizer: Called with the list that holds `alpha_logits`.
        make_scheduler: Called with the optimizer; None for none.
        traced: Whether the parameters are at present results of the alphas.
        run: The random numbers of the training run.
        open_gradient: The gradient that a stopped run was accumulating.
        caches: Whether the module has parts that cache what they made of their weights.
        watched: Whether hooks that are not known may read the weights between two steps.
        hook_checked: Whether the module's own hook has been seen to leave the weights alone.
    """

    flat: FlatIngredients
    places: dict[str, list[tuple[nn.Module, str]]]
    kept: dict[str, int]
    digests: list[str]
    make_optimizer: OptimizerCallable
    make_scheduler: LRSchedulerCallable | None
    frozen: list[nn.Parameter] = field(default_factory=list)
    traced: bool = False
    caches: bool = False
    run: RunState = field(default_factory=RunState)
    open_gradient: Tensor | None = None
    watched: bool = False
    hook_checked: bool = False


class LearnedWeights(LightningModule):
    """A LightningModule whose weights follow from `alpha_logits`, its only trainable parameter.

    The object takes over the module's class, steps, hooks, metrics and hyper-parameters. When
    gradients are not being taken (validation, test, callbacks, checkpoints) the module's
    parameters hold the merged weights, frozen; a training step calls `trace` first. What is not
    merged comes from the ingredients at the start: floating-point buffers are averaged, integer
    buffers are those of the first one.

    A checkpoint holds the merged weights under the module's own names, and under
    `lightning_merge` what a resumed run needs.

    What the alphas begin with is `alpha`, see `flat.initial_logits`; the optimizer is called with
    the list that holds `alpha_logits`, the scheduler, stepped once an epoch, with the optimizer.
    """

    alpha_logits: nn.Parameter
    _learned: Learned

    def __init__(
        self,
        module: LightningModule,
        ingredients: Ingredients,
        flat: FlatIngredients,
        alpha: float | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        adopt(self, module)
        self._learned = Learned(
            flat,
            parameter_places(self, ingredients.merged),
            ingredients.kept,
            ingredients.digests,
            optimizer,
            lr_scheduler,
        )
        self._settle(ingredients.states)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.alpha_logits = nn.Parameter(flat.initial_logits(alpha))
        self._bind()

    def alphas(self) -> StateDict:
        """The alpha of every element of every merged parameter, by name.

        Returns:
            For two ingredients the share of A, in the parameters' shapes; for K > 2 the
            shares of all of them, `(K, ...)`, in the ingredients' order; they add up to 1.
        """
        return self._learned.flat.alphas(self.alpha_logits)

    def alphas_by_ingredient(self) -> list[StateDict]:
        """The alphas in the parameters' shapes, a dict for each ingredient that has its own.

        Returns:
            For two ingredients that of A alone, since B has the rest; for K > 2 all K.
        """
        return self._learned.flat.alphas_by_ingredient(self.alpha_logits)

    def ingredients(self) -> tuple[StateDict, ...]:
        """The merged parameters of A and of the aligned others, by name."""
        return tuple(self._learned.flat.views())

    def refresh(self) -> None:
        """Writes the weights that the present alphas give into the module's parameters."""
        self._untrace()
        self._learned.flat.refresh(self.alpha_logits)

    def trace(self) -> None:
        """Makes the parameters results of the alphas, so that gradients reach these."""
        if self._learned.caches:
            # Parts of it may be in evaluation mode, such as a frozen body.
            clear_caches(self)
        weights = self._learned.flat.traced(self.alpha_logits)
        for parameter in self._learned.frozen:
            # Only what holds on to the parameter itself gives it a gradient.
            parameter.grad = None
            parameter.requires_grad_(True)
        for places, weight in zip(self._learned.places.values(), weights, strict=True):
            for owner, attribute in places:
                owner._parameters[attribute] = weight  # type: ignore[assignment]
        self._learned.traced = True

    # --- the module's own life, on merged weights

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """All of them; the module's own steps see its own, over which a penalty may go."""
        named = super().named_parameters(*args, **kwargs)
        if not (self._learned.traced or self._current_fx_name in _STEPS):
            return named
        return ((name, value) for name, value in named if value is not self.alpha_logits)

    def on_after_backward(self) -> None:
        """Puts the frozen parameters back, then the module's own hook.

        A gradient that reached one of these, and not the alphas, is refused.
        """
        self._untrace()
        for name, parameter in zip(self._learned.places, self._learned.frozen, strict=True):
            if parameter.grad is not None:
                parameter.grad = None
                raise ConfigError(
                    f"'{name}' is read from a list or dict in which the module keeps parameters, "
                    "and its gradient would miss the alphas: look it up by its name in each step"
                )
        super().on_after_backward()

    def train(self, mode: bool = True) -> "LearnedWeights":
        """Sets the mode; leaving training mode brings the parameters up to date."""
        super().train(mode)
        if not mode:
            self.refresh()
        return self

    def setup(self, stage: str) -> None:
        """Refuses, by a `ConfigError`, what would lose the alphas; then the module's own hook."""
        refuse_sharding(self.trainer.strategy)
        if stage == "fit":
            refuse_spawning(self.trainer.strategy)
            refuse_averaging(self, self.trainer.callbacks)  # type: ignore[attr-defined]
        super().setup(stage)

    def on_fit_start(self) -> None:
        """Notes or resumes the random numbers, before anything is drawn from them."""
        self._learned.run.on_fit_start()
        super().on_fit_start()

    def on_train_start(self) -> None:
        """The module's own hook, then what is resumed."""
        super().on_train_start()
        if self._learned.open_gradient is not None:
            self.alpha_logits.grad = self._learned.open_gradient.to(self.alpha_logits)
            self._learned.open_gradient = None
        self._learned.run.on_train_start(self.trainer)
        self._learned.watched = self._is_watched()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The module's own; then the new weights, where somebody may look between two steps."""
        with rates_in_view(self):
            super().optimizer_step(*args, **kwargs)
        if self._learned.watched:
            self.refresh()
        else:
            # Lightning drops it after the next merge only, which has a use for its memory.
            self.alpha_logits.grad = None

    def on_train_epoch_start(self) -> None:
        """The module's own hook, then notes what the epoch's order is drawn from."""
        self._learned.run.undo_draws()
        super().on_train_epoch_start()
        self._learned.run.on_train_epoch_start(self.trainer)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Notes the random numbers, then the module's own hook, on the weights after the step.

        A hook that writes merged parameters, which follow from the alphas, is refused.
        """
        self._learned.run.on_train_batch_end()
        hook: Any = super().on_train_batch_end
        if hook.__func__ is LightningModule.on_train_batch_end:
            return
        before = None if self._learned.hook_checked else self._learned.flat.merged.clone()
        hook(*args, **kwargs)
        if before is not None:
            self._refuse_writes(before)

    def on_validation_end(self) -> None:
        """The module's own hook; training does not notice what validation drew."""
        super().on_validation_end()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._learned.run.undo_draws()

    def on_train_end(self) -> None:
        """The module's own hook; gives back what only training needs."""
        super().on_train_end()
        self._learned.run.on_train_end(self.trainer)
        self._learned.flat.release()

    def configure_optimizers(self) -> Any:
        """The optimizer of the alphas; the module's own is not used."""
        optimizer = self._learned.make_optimizer([self.alpha_logits])
        if self._learned.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._learned.make_scheduler(optimizer)}

    # --- what is stored

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The merged weights and the buffers, under the module's own names."""
        if "alpha_logits" in self._parameters:
            self.refresh()
        state = super().state_dict(*args, **kwargs)
        state.pop(f"{kwargs.get('prefix', '')}alpha_logits", None)
        return state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the alphas and the ingredients beside the merged weights."""
        super().on_save_checkpoint(checkpoint)
        others = [buffer.clone() for buffer in self._learned.flat.buffers[1:]]
        accumulates = self.trainer.accumulate_grad_batches > 1
        checkpoint[SAVED] = {
            "alpha_logits": self.alpha_logits.detach().clone(),
            "ingredients": list(self._learned.digests),
            "alphas": self.alphas(),
            **({"b": others[0]} if len(others) == 1 else {"others": others}),
            "aligned": True,
            "rng": self._learned.run.state_dict(self.trainer),
            "gradient": self.alpha_logits.grad if accumulates else None,
        }
        self._save_swa(checkpoint.get("callbacks", {}))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes alphas and ingredients back from a checkpoint that was made with these settings."""
        saved = checkpoint.get(SAVED)
        if saved is None:
            raise CheckpointError(
                "the checkpoint holds no alphas: resume from one that a MergeModule wrote"
            )
        if saved["ingredients"] != self._learned.digests:
            raise CheckpointError(
                "the checkpoint was made from other ingredients: resume with the checkpoints "
                "that the run was started with"
            )
        if saved["alpha_logits"].shape != self.alpha_logits.shape:
            raise CheckpointError(
                "the checkpoint has another granularity, or keeps other parameters: resume with "
                "what the first run had"
            )
        # Parameters that `load_state_dict` would miss, since they are kept beside.
        checkpoint["state_dict"]["alpha_logits"] = saved["alpha_logits"]
        others = [saved["b"]] if "b" in saved else saved["others"]
        for buffer, other in zip(self._learned.flat.buffers[1:], others, strict=True):
            buffer.copy_(other)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._learned.run.load_state_dict(saved["rng"], self.global_rank)
            self._learned.open_gradient = saved["gradient"]
        super().on_load_checkpoint(checkpoint)

    def _save_swa(self, saved: dict[str, Any]) -> None:
        # Lightning's SWA keeps a copy of the module, whose `state_dict` has no alphas either.
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StochasticWeightAveraging) and callback.state_key in saved:
                copied: Any = callback._average_model
                state = saved[callback.state_key]["average_model_state"]
                if state is not None:
                    state["alpha_logits"] = copied.alpha_logits.detach().clone()

    # --- memory

    def _apply(self, fn: Any, recurse: bool = True) -> "LearnedWeights":
        # A step that failed leaves traced weights behind.
        self._untrace()
        logits = self.alpha_logits.data
        super()._apply(fn, recurse)
        if self.alpha_logits.dtype in (torch.float16, torch.bfloat16):
            # Half the bits cannot hold what an optimizer's small steps add up to.
            self.alpha_logits.data = logits.to(self.alpha_logits.device)
        self._learned.flat.apply(fn)
        self._bind()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._learned.places = parameter_places(self, self._learned.places)
        self._bind()

    def _bind(self) -> None:
        # The module's parameters become views of one buffer, which one pass then fills.
        flat = self._learned.flat
        self._learned.frozen = [self.get_parameter(name) for name in self._learned.places]
        for name, view in flat.layout.named_views(flat.merged).items():
            self.get_parameter(name).data = view
        self._learned.caches = caching_modules(self) != [self]
        self.refresh()

    def _is_watched(self) -> bool:
        # A pass over all weights, which Lightning's own callbacks, and ours, can do without.
        found = [
            one
            for one in self.trainer.callbacks  # type: ignore[attr-defined]
            if not type(one).__module__.startswith(("lightning.", "lightning_merge."))
        ]
        own: Any = super()
        return any(
            getattr(own, hook).__func__ is not getattr(LightningModule, hook)
            or any(is_overridden(hook, one, Callback) for one in found)
            for hook in ("on_train_batch_end", "on_train_epoch_end", "on_before_zero_grad")
        )

    def _refuse_writes(self, before: Tensor) -> None:
        views = self._learned.flat.layout.named_views
        now = views(self._learned.flat.merged)
        for name, value in views(before).items():
            if not torch.equal(value, now[name]):
                part = name.partition(".")[0]
                raise ConfigError(
                    f"'{name}' is written by the module's own on_train_batch_end, and the alphas "
                    f"would undo it: keep_a='{part}[.].*', for example, merges that part no more"
                )
        self._learned.hook_checked = True

    def _untrace(self) -> None:
        if not self._learned.traced:
            return
        flat, frozen = self._learned.flat, self._learned.frozen
        views = flat.layout.views(flat.merged)
        every = self._learned.places.values()
        for places, parameter, view in zip(every, frozen, views, strict=True):
            parameter.requires_grad_(False)
            parameter.data = view
            for owner, attribute in places:
                owner._parameters[attribute] = parameter
        self._learned.traced = False

    def _settle(self, states: Sequence[StateDict]) -> None:
        # What has no alphas: buffers and the module's own means, averaged, and what is kept of one.
        ours = {*self._learned.places, *self._learned.kept, "alpha_logits"}
        named = chain(self.named_buffers(), self.named_parameters())
        rest = [name for name, _ in named if name in states[0] and name not in ours]
        mean = average([{name: state[name] for name in rest} for state in states])
        put(self, {**mean, **{name: states[k][name] for name, k in self._learned.kept.items()}})
