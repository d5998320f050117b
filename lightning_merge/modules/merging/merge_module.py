"""NP Merge: any LightningModule, trained through one alpha for each of its parameters.

Non-Uniform Parameter-Wise Model Merging (Orozco Camacho et al. 2024), Eq. 2.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_merge.aggregate import average
from lightning_merge.aggregate.flat import FlatLayout
from lightning_merge.align import Matching
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import CheckpointError, ConfigError
from lightning_merge.modules.adopt import adopt
from lightning_merge.modules.merging.aligned_ingredients import aligned_states
from lightning_merge.modules.merging.flat_ingredients import FlatIngredients, parameter_places
from lightning_merge.modules.merging.read_ingredients import read_ingredients
from lightning_merge.modules.merging.resume import RunState
from lightning_merge.modules.merging.strategies import refuse_sharding, refuse_spawning

Granularity = Literal["model", "layer", "channel", "parameter"]

_SAVED = "lightning_merge"

# What this class adds to the module's own attributes.
_OWN = (
    "_owners",
    "_flat",
    "_digests",
    "_kept",
    "_rest",
    "_matching",
    "_make_optimizer",
    "_make_scheduler",
    "_traced",
    "_module_class",
    "_run",
    "_open_gradient",
)


def _adam(logits: Any) -> torch.optim.Optimizer:
    # On a CPU the fused one passes over memory once, the other a dozen times. Where losses are
    # scaled, on GPUs, Lightning does not clip for a fused one.
    return torch.optim.Adam(logits, lr=0.01, fused=logits[0].is_cpu or None)


class MergeModule(LightningModule):
    """Learns W = alpha * A + (1 - alpha) * B in place of the weights of a LightningModule.

    The object takes over the module's class, steps, hooks, metrics and hyper-parameters;
    all of them run on merged weights. Its only trainable parameter is `alpha_logits`; the
    ingredients are constants. Two of them have alpha = sigmoid(alpha_logits), K > 2 are
    merged jointly, with a softmax over K logits for each alpha, of shape `(K, n)`
    (`merge_in_pairs` merges them two at a time, as the paper does). When gradients are not
    being taken (validation, test, callbacks, checkpoints) the module's parameters hold the
    merged weights, frozen.

    A run that was stopped after any step and is resumed from its checkpoint gives the same
    alphas, on the CPU bit for bit, with any loader whose order is drawn when an epoch begins
    (all of torch's are): the batches already seen are fetched again and passed over, so that
    the others follow in their order. Loaders that keep their own place (`state_dict`) are
    trusted. Random augmentation by persistent workers is not drawn again as it was, nor does
    validation's drawing of random numbers show in training.

    Trains on one device, or on several with `strategy="ddp"`; every rank holds all of the
    ingredients. FSDP, DeepSpeed and ModelParallelStrategy, which split parameters, are
    refused, and so are strategies that spawn or fork, which would lose the alphas.

    A checkpoint holds the merged weights under the module's own names, so that the
    module's own class loads it without this package, and under `lightning_merge` what a
    resumed run needs: the logits, and the other ingredients as they were aligned.

    Floating-point buffers (running statistics) are averaged once, at the start, and then
    live as the module's own; reset them after training (`BatchNormReset`). Integer
    buffers are those of A.

    Args:
        module: Any LightningModule with automatic optimization; its weights are replaced.
        checkpoints: Two or more ingredients: paths, or state dicts with the module's names.
        granularity: How many alphas there are: one for the `model` or one a `layer` (a
            learned soup), one a `channel` or one a `parameter` (NP Merge).
        matching: How the others are aligned to A, on the module's own training data, when
            training starts; under DDP each rank reads its share of the batches. None if the
            ingredients are aligned already.
        alpha: The initial share of A; the others share the rest. All are equal if not given.
        optimizer: Called with the list that holds `alpha_logits`; Adam with a learning rate
            of 0.01 if not given.
        lr_scheduler: Called with the optimizer; stepped once an epoch.
        keep_a: A regular expression for the whole names of parameters and buffers that are
            not merged but taken from the first ingredient, for example `head[.].*`. Their
            shapes may differ in the others. They are frozen, and have no alphas.
        keep_b: The same for the second ingredient.

    Raises:
        ConfigError: If the module is none of Lightning's, or optimizes manually, `alpha` is not
            between 0 and 1, or `keep_a` or `keep_b` matches nothing or everything.
        MergeError: If there are not two ingredients, or they cannot be read, differ in
            architecture, or hold NaN.
    """

    alpha_logits: nn.Parameter

    # How the ingredients are mixed.
    _mixing: ClassVar[type[FlatIngredients]] = FlatIngredients

    def __init__(
        self,
        module: LightningModule,
        checkpoints: Sequence[str | Path | Mapping[str, Tensor]],
        granularity: Granularity = "parameter",
        matching: Matching | None = None,
        alpha: float | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        keep_a: str | None = None,
        keep_b: str | None = None,
    ) -> None:
        if not isinstance(module, LightningModule):
            raise ConfigError(
                f"{type(module).__module__}.{type(module).__name__} is no LightningModule of "
                "lightning.pytorch: hand over one, which has its steps"
            )
        if not module.automatic_optimization:
            raise ConfigError(
                f"{type(module).__name__} optimizes manually: MergeModule needs a module with "
                "automatic_optimization = True"
            )
        if alpha is not None and not 0 < alpha < 1:
            raise ConfigError(f"alpha is {alpha}: choose a number between 0 and 1")
        read = read_ingredients(checkpoints, module, (keep_a, keep_b))
        owners = parameter_places(module, read.kept)
        if not owners:
            raise ConfigError("keep_a and keep_b leave no parameter to merge; keep fewer")
        parameters = {name: module.get_parameter(name) for name in owners}
        flat = self._mixing(parameters, read.states, granularity)
        self._module_class: type[LightningModule]
        user = type(module)
        adopt(self, module)
        self._module_class = user
        self._owners = owners
        self._flat = flat
        self._digests = read.digests
        self._kept = read.kept
        self._matching = matching
        self._make_optimizer = optimizer or _adam
        self._make_scheduler = lr_scheduler
        self._traced = False
        self._run = RunState()
        self._open_gradient: Tensor | None = None
        # Needed until the others are aligned: what is not merged moves with the units.
        self._rest: list[StateDict] = [
            {name: value for name, value in state.items() if name not in owners}
            for state in read.states
        ]
        self._load_rest(self._rest)
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
        return self._flat.alphas(self.alpha_logits)

    def alphas_by_ingredient(self) -> list[StateDict]:
        """The alphas in the parameters' shapes, a dict for each ingredient that has its own.

        Returns:
            For two ingredients that of A alone, since B has the rest; for K > 2 all K.
        """
        return self._flat.alphas_by_ingredient(self.alpha_logits)

    def ingredients(self) -> tuple[StateDict, ...]:
        """The merged parameters of A and of the aligned others, by name."""
        return tuple(self._flat.views())

    def refresh(self) -> None:
        """Writes the weights that the present alphas give into the module's parameters."""
        self._untrace()
        self._flat.refresh(self.alpha_logits)

    # --- the module's own life, on merged weights

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own step, on weights through which gradients reach the alphas."""
        weights = self._flat.traced(self.alpha_logits)
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

    def setup(self, stage: str) -> None:
        """Refuses what would lose the alphas, then the module's own hook.

        Raises:
            ConfigError: If the strategy splits parameters, or spawns or forks to fit.
        """
        refuse_sharding(self.trainer.strategy)
        if stage == "fit":
            refuse_spawning(self.trainer.strategy)
        super().setup(stage)

    def on_fit_start(self) -> None:
        """Notes or resumes the random numbers, before anything is drawn from them."""
        self._run.on_fit_start()
        super().on_fit_start()

    def on_train_start(self) -> None:
        """Aligns to A if a matching was given, the module's own hook, then what is resumed."""
        if self._matching is not None:
            self._align(self._matching)
            self._matching = None
        super().on_train_start()
        if self._open_gradient is not None:
            self.alpha_logits.grad = self._open_gradient.to(self.alpha_logits)
            self._open_gradient = None
        self._run.on_train_start(self.trainer)

    def on_train_epoch_start(self) -> None:
        """The module's own hook, then notes what the epoch's order is drawn from."""
        self._run.undo_draws()
        super().on_train_epoch_start()
        self._run.on_train_epoch_start(self.trainer)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Notes the random numbers, then the module's own hook."""
        self._run.on_train_batch_end()
        super().on_train_batch_end(*args, **kwargs)

    def on_validation_end(self) -> None:
        """The module's own hook; training does not notice what validation drew."""
        super().on_validation_end()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._run.undo_draws()

    def on_train_end(self) -> None:
        """The module's own hook; gives back what only training needs."""
        super().on_train_end()
        self._run.on_train_end(self.trainer)
        self._flat.release()

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
        """Adds the alphas and the aligned ingredients beside the merged weights."""
        super().on_save_checkpoint(checkpoint)
        others = [buffer.clone() for buffer in self._flat.buffers[1:]]
        accumulates = self.trainer.accumulate_grad_batches > 1
        checkpoint[_SAVED] = {
            "alpha_logits": self.alpha_logits.detach().clone(),
            "ingredients": list(self._digests),
            "alphas": self.alphas(),
            **({"b": others[0]} if len(others) == 1 else {"others": others}),
            "aligned": self._matching is None,
            "rng": self._run.state_dict(self.trainer),
            "gradient": self.alpha_logits.grad if accumulates else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes alphas and aligned ingredients back from a checkpoint of this class."""
        saved = checkpoint.get(_SAVED)
        if saved is None:
            raise CheckpointError(
                "the checkpoint holds no alphas: resume from one that a MergeModule wrote"
            )
        if saved["ingredients"] != self._digests:
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
        for buffer, other in zip(self._flat.buffers[1:], others, strict=True):
            buffer.copy_(other)
        if saved["aligned"]:
            self._matching = None
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._run.load_state_dict(saved["rng"], self.global_rank)
            self._open_gradient = saved["gradient"]
        super().on_load_checkpoint(checkpoint)

    # --- memory

    def _apply(self, fn: Any, recurse: bool = True) -> "MergeModule":
        # A step that failed leaves traced weights behind.
        self._untrace()
        logits = self.alpha_logits.data
        super()._apply(fn, recurse)
        if self.alpha_logits.dtype in (torch.float16, torch.bfloat16):
            # Half the bits cannot hold what an optimizer's small steps add up to.
            self.alpha_logits.data = logits.to(self.alpha_logits.device)
        self._flat.apply(fn)
        self._bind()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._owners = parameter_places(self, self._kept)
        self._bind()

    @property
    def _layout(self) -> FlatLayout:
        return self._flat.layout

    def _bind(self) -> None:
        # The module's parameters become views of one buffer, which one pass then fills.
        for name, view in self._layout.named_views(self._flat.merged).items():
            self.get_parameter(name).data = view
        self.refresh()

    def _untrace(self) -> None:
        if not self._traced:
            return
        for places, view in zip(
            self._owners.values(), self._layout.views(self._flat.merged), strict=True
        ):
            parameter = nn.Parameter(view, requires_grad=False)
            for owner, attribute in places:
                owner._parameters[attribute] = parameter
        self._traced = False

    def _load_rest(self, states: Sequence[StateDict]) -> None:
        # What has no alphas: buffers, averaged, and what is kept of one ingredient.
        own = {name: states[k][name] for name, k in self._kept.items()}
        buffers = [name for name, _ in self.named_buffers() if name in states[0]]
        mean = average([{name: state[name] for name in buffers} for state in states])
        with torch.no_grad():
            for name, buffer in self.named_buffers():
                if name in mean:
                    buffer.copy_(own.get(name, mean[name]))
            for name, parameter in self.named_parameters():
                if name in own:
                    parameter.copy_(own[name])

    def _align(self, matching: Matching) -> None:
        count = len(self._flat.buffers)
        states = aligned_states(self.trainer, matching, self._ingredient, count)
        for buffer, state in zip(self._flat.buffers[1:], states[1:], strict=True):
            buffer.copy_(self._layout.flatten(state, self.device))
        self._load_rest(states)
        self.refresh()

    def _ingredient(self, index: int) -> LightningModule:
        state = {name: value for name, value in self.__dict__.items() if name not in _OWN}
        state["_trainer"] = None
        state["_parameters"] = {
            name: value for name, value in self._parameters.items() if name != "alpha_logits"
        }
        copied: LightningModule = object.__new__(self._module_class)
        copied.__dict__.update(copy.deepcopy(state))
        copied.load_state_dict({**self._flat.views()[index], **self._rest[index]})
        return copied.eval()
