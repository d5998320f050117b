"""AdaMerging as a recipe's aggregate: coefficients fitted to all tasks' unlabelled images."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_merge.aggregate import average
from lightning_merge.batches import inputs_of
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import Transferred
from lightning_merge.logit_answers import are_independent
from lightning_merge.modules import AdaMergingModule
from lightning_merge.modules.last_layer import take_off
from lightning_merge.modules.merging.ada_merging_module import check_coefficients
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.held_out import HeldOut
from lightning_merge.recipe.task_context import TaskContext, TaskData
from lightning_merge.recipe.task_held_out import TaskHeldOut
from lightning_merge.tensor_names import is_running_statistic

_BODY, _HEADS = "body.", "heads."


@aggregates.register(
    paper="Yang et al. 2024, AdaMerging", needs="several tasks, unlabelled held-out images"
)
class AdaMerging(Aggregate):
    """A coefficient for each task vector, learned without labels from predictions' entropy.

    Yang et al. 2024, "AdaMerging: Adaptive Model Merging for Multi-Task Learning". The body is
    `P + sum_k c_k (W_k - P)` with each c_k in [0, 1]; the entropies of all seen tasks, each
    under its own frozen head, are added and descended. The paper does so on the test images
    themselves. Here nothing is tuned on test data: the images are those held out for validation,
    and their labels are dropped before anything can read them.

    The network is in evaluation mode meanwhile, as it will be used: running statistics are the
    mean of the ingredients', and there is no dropout. A step takes a batch of each task; tasks
    with fewer images begin anew.

    Args:
        granularity: One coefficient a task (`model`), or one a task and tensor (`layer`).
        max_steps: How many steps.
        batch_size: How many images of each task a step takes.
        coefficient: The initial coefficients; the default is the paper's.
        optimizer: Called with the coefficients; the default is the paper's.

    Raises:
        ConfigError: If the granularity is another one, `coefficient` is not between 0 and 1, or
            there are no steps or images.
    """

    from_pretrained = True

    def __init__(
        self,
        granularity: Literal["model", "layer"] = "layer",
        max_steps: int = 500,
        batch_size: int = 16,
        coefficient: float = 0.3,
        optimizer: OptimizerCallable = lambda coefficients: torch.optim.Adam(
            coefficients, lr=0.001
        ),
    ) -> None:
        check_coefficients(granularity, coefficient)
        if max_steps < 1 or batch_size < 1:
            raise ConfigError("AdaMerging: max_steps and batch_size are 1 or more")
        self.granularity = granularity
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.coefficient = coefficient
        self.optimizer = optimizer

    def check(self, context: Context) -> None:
        """Checks that there are several tasks, and held-out images of each."""
        if not isinstance(context, TaskContext):
            raise ConfigError(
                "AdaMerging is fitted to several tasks, each under its own head: use it in `tasks`"
            )
        if context.task_statistics:
            raise ConfigError(
                "AdaMerging computes all tasks with the same BatchNorm statistics: leave it out, "
                "or task_statistics"
            )
        TaskHeldOut(context)

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the merged body."""
        self.check(context)
        assert isinstance(context, TaskContext)
        held_out = TaskHeldOut(context)
        network = _ManyHeads(context)
        mean = average(states)
        statistics = {name: mean[name] for name in mean if is_running_statistic(name)}
        start, *tuned = (
            network.named({**state, **statistics}) for state in (context.pretrained, *states)
        )
        module = AdaMergingModule(
            network,
            start,
            tuned,
            self.granularity,
            self.coefficient,
            self.optimizer,
            keep_a=r"heads[.].*",
        )
        loaders = {
            str(number): _unlabelled(held_out.parts[task.name], self.batch_size, task)
            for number, task in enumerate(context.seen)
        }
        trainer = context.trainer(max_steps=self.max_steps, max_epochs=-1, limit_val_batches=0)
        with warnings.catch_warnings():
            # Lightning warns of the evaluation mode, which is meant.
            warnings.filterwarnings("ignore", "Found .* module.* in eval mode")
            trainer.fit(module, train_dataloaders=loaders)
        found = dict(zip(context.names, module.coefficients().cpu().tolist(), strict=True))
        means = ", ".join(f"{sum(own) / len(own):.3g} {name}" for name, own in found.items())
        choice = Choice(
            f"coefficients (means) {means}, fitted to the entropy on {held_out.size:,} unlabelled "
            "validation images",
            {"coefficients": found, "examples": held_out.size},
        )
        return Merged(context.build(network.body_of(module.state_dict())), (choice,))


class _ManyHeads(LightningModule):
    """One body under the heads of all seen tasks, which are numbered: inputs to logits."""

    def __init__(self, context: TaskContext) -> None:
        super().__init__()
        self.first_head = dict(context.seen[0].head)
        layer = context.heads[0].rpartition(".")[0]
        self.heads = nn.ModuleDict(
            {
                str(number): task.build(context.pretrained).get_submodule(layer)
                for number, task in enumerate(context.seen)
            }
        )
        # What `AdaMergingModule` asks for.
        self.independent = {
            str(number) for number, task in enumerate(context.seen) if are_independent(task.module)
        }
        self.body = copy.deepcopy(context.module)
        take_off(self.body, layer)
        self.train()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {number: self.heads[number](self.body(x)) for number, x in inputs.items()}

    def train(self, mode: bool = True) -> "_ManyHeads":
        super().train(mode)
        self.body.eval()
        return self

    def named(self, state: Mapping[str, Tensor]) -> StateDict:
        """A body's state dict with the names of this module's."""
        own = {name: value for name, value in self.state_dict().items() if name.startswith(_HEADS)}
        body = {name: value for name, value in state.items() if name not in self.first_head}
        return {**{f"{_BODY}{name}": value for name, value in body.items()}, **own}

    def body_of(self, state: Mapping[str, Tensor]) -> StateDict:
        """A body's own names again, under the first task's head."""
        body = {name: value for name, value in state.items() if name.startswith(_BODY)}
        own = {name.removeprefix(_BODY): value for name, value in body.items()}
        return {**own, **self.first_head}


def _unlabelled(held_out: HeldOut, batch_size: int, task: TaskData) -> Transferred:
    """A task's validation images in random order, as its network gets them; without labels."""
    shuffled = held_out.shuffled(batch_size)
    return Transferred(shuffled, task.module, task.data, held_out.context.device, inputs_of)
