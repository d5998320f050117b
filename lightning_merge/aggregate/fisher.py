"""Each parameter is taken most from the network whose predictions depend on it most.

Matena and Raffel 2022, "Merging Models with Fisher-Weighted Averaging".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_merge.aggregate.averaging import mean_of
from lightning_merge.aggregate.inputs import (
    State,
    check_finite_over_data,
    checked,
    opened_all,
    wide,
)
from lightning_merge.aggregate.name_weights import NameWeights, Weights
from lightning_merge.batches import inputs_in, to_device_of
from lightning_merge.errors import ConfigError
from lightning_merge.logit_answers import log_probabilities
from lightning_merge.modes import clear_caches, evaluation
from lightning_merge.number_types import is_fraction
from lightning_merge.state_dicts import StateDict, check_alike


def fisher_average(
    states: Sequence[State],
    fishers: Sequence[Mapping[str, Tensor]],
    weights: Weights | None = None,
    normalize: bool = True,
) -> StateDict:
    """`sum_k weights_k F_k * state_k / sum_k weights_k F_k`, entry by entry.

    Where no network's Fisher information is above 0, and for tensors that have none (running
    statistics), it is the average with `weights`. Integers and booleans are those of the
    first state.

    Args:
        states: K state dicts with the same names and shapes, or paths of files of weights.
        fishers: K diagonals of the Fisher information by parameter name, none negative, as
            `diagonal_fisher` gives them.
        weights: K numbers that are not negative, or K numbers by regular expression; equal if
            not given.
        normalize: Whether each network's Fisher information is first divided by its Euclidean
            norm over all parameters. Its scale says how sure a network is of its predictions,
            not how much each parameter matters, and differs by orders of magnitude between
            tasks. The authors' code does so unless it is switched off (`normalize_fishers`);
            the paper's formula does not.

    Returns:
        A new state dict, computed in float64, in the states' own types.

    Raises:
        ConfigError: If the numbers of states, Fishers and weights do not fit, a name is in
            some of the Fishers only, or an entry is negative.
        MergeError: If the states do not fit each other, or hold NaN.
    """
    if not len(states) or len(states) != len(fishers):
        raise ConfigError(
            f"Fisher average: {len(states)} states, {len(fishers)} Fishers; give one of each for "
            "every network"
        )
    shares = NameWeights(weights, len(states), "Fisher average").check_means()
    for fisher in fishers:
        different = sorted(set(fisher) ^ set(fishers[0]))
        if different:
            raise ConfigError(
                f"Fisher average: '{different[0]}' is in some of the Fishers only; estimate all "
                "of them on networks of one architecture"
            )
    found, names = opened_all(states)
    table = check_alike(found, names)
    shares.check_used(table)
    norms = [_norm(fisher) if normalize else 1.0 for fisher in fishers]
    merged: StateDict = {}
    for name, entry in table.items():
        own = shares.of(name)
        if min(own) < 0:
            raise ConfigError(f"Fisher average: weights {own}; none may be negative")
        values = [state[name].detach() for state in found if name in state]
        if not is_fraction(entry.code):
            merged[name] = values[0].clone()
            continue
        merged[name] = mean_of(name, values, own, names, entry)
        if name not in fishers[0]:
            continue
        weighted = torch.zeros_like(values[0], dtype=wide(values[0]))
        information = torch.zeros_like(values[0], dtype=torch.float64)
        for value, fisher, share, norm in zip(values, fishers, own, norms, strict=True):
            one = fisher[name].detach().to(information) / norm * share
            if one.shape != value.shape:
                raise ConfigError(
                    f"Fisher average: the information of '{name}' is {tuple(one.shape)} and the "
                    f"tensor {tuple(value.shape)}; estimate it on a network of this architecture"
                )
            if not bool((one >= 0).all()):
                raise ConfigError(f"Fisher average: '{name}' has negative information, or NaN")
            weighted += one * value.to(weighted)
            information += one
        average = torch.where(information > 0, weighted / information, merged[name].to(weighted))
        merged[name] = checked(name, average.to(merged[name].dtype), values[0])
    return merged


def _norm(fisher: Mapping[str, Tensor]) -> float:
    def of(value: Tensor) -> float:
        value = value.detach().to("cpu", torch.float64)
        # Relative to the largest, whose square may be beyond the range of numbers.
        largest = float(value.abs().max()) if value.numel() else 0.0
        return largest * float((value / (largest or 1.0)).norm())

    return math.hypot(*map(of, fisher.values())) or 1.0


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    labels_per_example: int | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 16,
    independent: bool = False,
) -> StateDict:
    """The diagonal of a classifier's Fisher information, averaged over examples.

    `E_x E_y (d log p(y|x) / d parameter)^2` with y from the network's own predictions, so
    true labels are not used. The network is in eval mode meanwhile and is left unchanged.

    Args:
        model: Takes an input `(B, ...)` and gives logits `(B, C)`, each row from its own
            example.
        batches: What a data loader gives; see `lightning_merge.batches`.
        labels_per_example: How many labels to draw for each example; the exact expectation
            over all C classes if not given, which costs C backward passes (2 C of independent
            logits).
        generator: Where drawn labels come from, on the CPU; torch's own if not given.
        chunk: For how many examples gradients are held at a time: as many model sizes.
        independent: Whether each logit is that of a yes of its own (multi-label), instead of
            classes that exclude each other. A single logit is in any case.

    Returns:
        A tensor in float64 for each parameter, tied ones under all their names.

    Raises:
        ConfigError: If there are no examples, or the model gives no logits `(B, C)`.
        NonFiniteError: If the images or the weights hold NaN or infinity.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())
    fisher = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}

    def scaled_log_probability(values: StateDict, one: Tensor, label: Tensor) -> Tensor:
        clear_caches(model)
        logits = functional_call(model, (values, buffers), (one.unsqueeze(0),))
        of_answers = log_probabilities(logits[0], independent)
        if labels_per_example is not None:
            return of_answers.gather(1, label.unsqueeze(1)).sum()
        log_probability = of_answers.flatten().gather(0, label.unsqueeze(0))[0]
        # The factor's square is the probability with which the expectation weighs a class.
        return (log_probability.detach() / 2).exp() * log_probability

    gradients = vmap(grad(scaled_log_probability), in_dims=(None, 0, 0), randomness="different")
    seen = 0
    with evaluation(model):
        for inputs in inputs_in(batches):
            for part in to_device_of(model, inputs).split(chunk):
                drawn = _labels(model, part, labels_per_example, generator, independent)
                for labels in drawn:
                    for name, value in gradients(parameters, part, labels).items():
                        fisher[name] += value.to(torch.float64).square().sum(dim=0)
                    clear_caches(model)
                seen += len(part)
    if seen == 0:
        raise ConfigError("Fisher information: there are no examples; give at least one batch")
    divisor = seen * (labels_per_example or 1)
    names = {id(value): name for name, value in model.named_parameters()}
    for value in fisher.values():
        value.div_(divisor)
    check_finite_over_data("Fisher information", fisher)
    return {name: fisher[names[id(value)]] for name, value in named.items()}


@torch.no_grad()
def _labels(
    model: nn.Module,
    inputs: Tensor,
    draws: int | None,
    generator: torch.Generator | None,
    independent: bool,
) -> list[Tensor]:
    """Drawn answers to all questions, `(B, questions)`; or the place of each answer, `(B,)`."""
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ConfigError("Fisher information: the model must give logits of shape (B, C)")
    probabilities = log_probabilities(logits, independent).exp().cpu()
    if draws is None:
        places = range(probabilities[0].numel())
        return [torch.full_like(logits[:, 0], place, dtype=torch.long) for place in places]
    rows = probabilities.flatten(0, 1)
    drawn = torch.multinomial(rows, draws, replacement=True, generator=generator)
    return list(drawn.view(len(logits), -1, draws).to(logits.device).unbind(dim=2))
