"""Representation surgery as a recipe's aggregate: a correction for each task behind one body."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable

from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import example_inputs
from lightning_merge.modules.surgery import SurgeryModule, check_rank
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.fitting import fit
from lightning_merge.recipe.recalibration import recalibrate_with
from lightning_merge.recipe.task_context import TaskContext, TaskData


@aggregates.register(
    paper="Yang et al. 2024, Representation Surgery",
    needs="several tasks, their unlabelled training images; what the aggregate needs",
)
class RepresentationSurgery(Aggregate):
    """Another merge of several tasks, and for each task a small correction of its features.

    Yang et al. 2024, "Representation Surgery for Multi-Task Model Merging". Under the head of each
    seen task, a `SurgeryModule` learns from the task's training images, without their labels, to
    give the features of the task's own network: of its first one, where there are several. The
    paper does so on test images. A task whose networks a selection leaves out, or that is unseen,
    has the merged body as it is. Scales and selections are searched without the corrections.

    Args:
        aggregate: The merge to be corrected.
        rank: Of each correction, which has `2 d rank` numbers for features `(B, d)`.
        max_steps: How many steps each is trained, on batches of the task's own loader.
        optimizer: As for `SurgeryModule`.

    Raises:
        ConfigError: If the aggregate gives several networks, or rank or steps are below 1.
    """

    label = "surgery"
    corrects_tasks = True

    def __init__(
        self,
        aggregate: Aggregate,
        rank: int = 16,
        max_steps: int = 1000,
        optimizer: OptimizerCallable | None = None,
    ) -> None:
        kind = type(aggregate).__name__
        if aggregate.is_ensemble or aggregate.corrects_tasks:
            raise ConfigError(f"RepresentationSurgery: {kind} makes no one body: choose a merge")
        check_rank(rank, type(self).__name__)
        if max_steps < 1:
            raise ConfigError(f"RepresentationSurgery: max_steps is {max_steps}; choose 1 or more")
        self.aggregate = aggregate
        self.rank = rank
        self.max_steps = max_steps
        self.optimizer = optimizer
        self.learns = aggregate.learns  # type: ignore[misc]
        self.from_pretrained = aggregate.from_pretrained  # type: ignore[misc]

    def check(self, context: Context) -> None:
        """Checks that there are several tasks, and what the other aggregate needs."""
        if not isinstance(context, TaskContext):
            raise ConfigError(
                "RepresentationSurgery corrects the features of each of several tasks: use it in "
                "`tasks`, or train a SurgeryModule"
            )
        self.aggregate.check(context)

    def check_count(self, count: int) -> None:
        """Checks that the other aggregate can combine so many."""
        self.aggregate.check_count(count)

    @property
    def fits_any_count(self) -> bool:
        """Whether the other aggregate does."""
        return self.aggregate.fits_any_count

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """The merged body, and the corrected network of each task."""
        self.check(context)
        assert isinstance(context, TaskContext)
        merged = self.aggregate(states, context)
        # Features are corrected as they will be: behind the recipe's recalibration.
        shares = self.aggregate.weights_of_mean(len(states))
        recalibrate_with(context, states)(merged.module, shares)
        body = merged.module.state_dict()
        own: dict[str, StateDict] = {}
        named = list(zip(context.names, states, strict=True))
        for name, state in sorted(named, key=lambda one: one[0] in context.further):
            own.setdefault(context.task(name).name, state)
        corrected = {
            task.name: self._corrected(context, task, body, own[task.name])
            for task in context.seen
            if task.name in own
        }
        return replace(merged, for_tasks=corrected)

    def _corrected(
        self, context: TaskContext, task: TaskData, body: StateDict, own: StateDict
    ) -> LightningModule:
        network, individual = (context.build_for(task, state) for state in (body, own))
        example = example_inputs(context.statistics_of(task), context.device)
        module = SurgeryModule(network, individual, example, self.rank, self.optimizer)
        trainer = context.trainer(max_steps=self.max_steps, max_epochs=-1)
        with warnings.catch_warnings():
            # Lightning warns of the evaluation mode, which is meant.
            warnings.filterwarnings("ignore", "Found .* module.* in eval mode")
            fit(module, task.data, trainer)
        network.set_submodule(module.surgery_name, module.get_submodule(module.surgery_name))
        return network.cpu().eval()
