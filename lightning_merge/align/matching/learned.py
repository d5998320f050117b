"""Learned matching: maps of b's units trained so that the merged network does well.

Source: Theus et al. 2025, "Generalized Linear Mode Connectivity for Transformers".
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_merge.align.matching.activation import ActivationMatching
from lightning_merge.align.matching.learned_maps import LearnedMaps, distillation
from lightning_merge.align.matching.learned_orders import Units
from lightning_merge.align.matching.matching import matchings, nothing_to_align
from lightning_merge.align.matching.symmetric_descent import Maps
from lightning_merge.align.matching.symmetric_maps import MapMatching, check_symmetries
from lightning_merge.align.matching.weight import WeightMatching
from lightning_merge.batches import classes_of, inputs_of, to_device_of
from lightning_merge.distributed import ranks, sum_over_ranks
from lightning_merge.errors import AlignmentError
from lightning_merge.modes import clear_caches, evaluation, under_weights
from lightning_merge.progress import tracked
from lightning_merge.symmetry.spec import PermutationSpec, Symmetries

Start = Literal["weights", "activations"]


@matchings.register(
    paper="Theus et al. 2025, Generalized Linear Mode Connectivity for Transformers",
    needs="training images, unlabelled",
)
class LearnedMatching(MapMatching):
    """Train rotations, matrices inside heads and factors so that the merged network does well.

    Starts from a closed form (`WeightMatching` or `ActivationMatching` with all symmetries), whose
    order of heads it keeps, and, unless `units` is set, that of units. It minimises the loss of
    the mean of a and the mapped b: its cross-entropy against the mean of both networks' outputs,
    or with `labels` against the batches' classes. b's function is preserved exactly, whatever was
    learned. The
    distance of the weights may rise meanwhile: it is not the criterion.

    BatchNorms normalise by their batch while maps are trained, as the merged network's
    statistics are reset later; everything else is in eval mode.

    Args:
        start: `activations` or `weights`.
        steps: How many batches to learn from; the batches are read as often as that takes.
        lr: Adam's learning rate at the beginning; it ends at zero by a cosine.
        share: The share of a in the merge whose loss is taken; None draws another one from
            (0, 1) for each batch.
        labels: Whether to learn from the batches' classes in place of the networks' outputs.
        seed: Of the shares that are drawn, and of the start by weights.
        units: How the order of units is learned, for convolutional networks above all: `fixed`
            for not at all; `sinkhorn`, by doubly stochastic matrices; `straight-through`, by
            their best assignment, with the gradient passed through it (Git Re-Basin's
            Algorithm 3).

    Raises:
        AlignmentError: A setting is out of its range.
    """

    label: ClassVar[str] = "Learned matching"
    symmetries: Symmetries = "all"

    def __init__(
        self,
        start: Start = "activations",
        steps: int = 400,
        lr: float = 0.01,
        share: float | None = 0.5,
        labels: bool = False,
        seed: int = 0,
        units: Units = "fixed",
    ) -> None:
        if units not in get_args(Units):
            raise AlignmentError(f"units is {units!r}: choose one of {', '.join(get_args(Units))}")
        if start not in ("weights", "activations"):
            raise AlignmentError(f"start is {start!r}: choose 'weights' or 'activations'")
        if steps < 0 or lr <= 0 or not (share is None or 0 < share < 1):
            raise AlignmentError(
                f"steps {steps}, lr {lr}, share {share}: steps are 0 or more, lr is positive, "
                "share is between 0 and 1 or None"
            )
        self.start, self.steps, self.lr = start, steps, lr
        self.share, self.labels, self.seed, self.units = share, labels, seed, units

    def match(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool = False,
    ) -> Maps:
        """The maps of canonical b onto canonical a, for `spec.transform(spec.canonical(b), maps)`.

        Args:
            spec: A spec with all symmetries.
            model_a: The network that stays as it is.
            model_b: The network whose maps are sought; neither is changed.
            batches: Read once for the start by activations, and then for the steps.
            progress: Whether to show a progress bar.

        Raises:
            AlignmentError: There are no batches, or none with classes where they are needed; they
                are an iterator; the spec has permutations only.
        """
        check_symmetries(spec, self.symmetries)
        if isinstance(batches, Iterator):
            raise AlignmentError(
                "learned matching reads its batches again and again, and an iterator can be read "
                "once: give a loader or a list"
            )
        if nothing_to_align(spec):
            return spec.identity()
        maps: Maps
        if self.start == "weights":
            maps = WeightMatching(self.seed, "all").match(spec, model_a, model_b, progress)
        else:
            closed = ActivationMatching(symmetries="all")
            maps = closed.match(spec, model_a, model_b, batches, progress)
        with torch.inference_mode(False), torch.enable_grad():
            learned = LearnedMaps(
                spec, model_a.state_dict(), model_b.state_dict(), maps, self.units
            )
            with evaluation(model_a, model_b):
                self._train(learned, model_a, model_b, batches, progress)
        return learned.maps()

    def _train(
        self,
        learned: LearnedMaps,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool,
    ) -> None:
        network = normalising_by_batch(copy.deepcopy(model_a))
        parameters = list(learned.parameters())
        optimizer = torch.optim.Adam(parameters, lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(self.steps, 1))
        generator = torch.Generator().manual_seed(self.seed)
        listed = repeated(batches, self.steps)
        for batch in tracked(listed, "Learning to match", progress):
            x = to_device_of(model_a, inputs_of(batch))
            share = self.share
            if share is None:
                share = float(torch.rand((), generator=generator))
            if self.labels:
                loss = partial(nn.functional.cross_entropy, target=classes_in(batch).to(x.device))
            else:
                with torch.no_grad():
                    teachers = (model_a(x) + model_b(to_device_of(model_b, x)).to(x.device)) / 2
                loss = partial(distillation, teachers=teachers)
            clear_caches(network)
            gradients = under_weights(
                network, learned.merged(share), partial(_gradients, network, x, loss, parameters)
            )
            if ranks()[1] > 1:
                sums = sum_over_ranks(gradients)
                gradients = tuple(
                    (g / ranks()[1]).to(p) for g, p in zip(sums, parameters, strict=True)
                )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
            raise AlignmentError(
                "learned matching: the loss was NaN or infinite; check both networks' weights and "
                "the data, or lower lr"
            )


def _gradients(
    network: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(network(x)), parameters)


def normalising_by_batch(network: nn.Module) -> nn.Module:
    """The network in eval mode, its BatchNorms in train mode."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return network


def classes_in(batch: Any) -> Tensor:
    """The classes of a batch; an `AlignmentError` if it has none."""
    classes = classes_of(batch)
    if classes is None:
        raise AlignmentError(
            "the batches have no classes to learn a matching from: give (images, classes), or "
            "labels=False"
        )
    return classes


def repeated(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """So many batches with examples, read again and again; an `AlignmentError` without any.

    A batch of one example behind larger ones is left out: BatchNorm cannot train on it.
    """
    count, least = 0, 1
    while count < steps:
        before = count
        for batch in batches:
            size = len(inputs_of(batch))
            if size < least:
                continue
            least = min(size, 2)
            yield batch
            count += 1
            if count == steps:
                return
        if count == before:
            if not count:
                raise AlignmentError("learned matching needs at least one batch, there was none")
            return
