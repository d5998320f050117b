"""Greedy soups: ingredients join an average one by one, as long as it gets better.

Wortsman et al. 2022, "Model soups", Recipe 1. A candidate must be strictly better than the
soup so far, as in the authors' code; of two equals the smaller soup is kept.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_merge.aggregate.inputs import State, is_numeric, opened, wide
from lightning_merge.errors import ArchitectureMismatchError, ConfigError
from lightning_merge.number_types import common_type
from lightning_merge.state_dicts import (
    StateDict,
    check_alike,
    check_finite,
    entry_of,
    is_finite,
    table_of,
    torch_type,
)
from lightning_merge.tensor_table import (
    common_entries,
    common_names,
    must_agree,
    not_linear,
    other_factors,
)

Source = State | Callable[[], Mapping[str, Tensor]]
"""A state dict; or a path, or a function that reads one: then two are in memory at a time."""


@dataclass(frozen=True)
class Trial:
    """One line of a greedy search's trace; the first is the best ingredient alone.

    Attributes:
        candidate: Which of the states was tried.
        alone: That state's own metric.
        metric: The metric of the soup with it; None if the candidate was dropped before its
            evaluation was complete.
        kept: Whether it is in the soup.
        examples: How many examples the soup was evaluated on, 0 if the ingredient's own
            evaluation was used again; None if `evaluate` does not count them.
    """

    candidate: int
    alone: float
    metric: float | None
    kept: bool
    examples: int | None = None


def greedy_soup(
    states: Sequence[Source],
    evaluate: Callable[[StateDict], float],
    metrics: Sequence[float] | None = None,
) -> tuple[StateDict, list[Trial]]:
    """Averages the ingredients that improve the average on held-out data.

    The ingredients are tried from the best to the worst (of equals, the earlier first). The
    soup is the uniform average of those kept, from a running sum in float64; integers and
    booleans are those of the best ingredient.

    Args:
        states: K state dicts with the same names and shapes, paths of files of weights, or
            functions that read them.
        evaluate: Gives a state dict's metric, on data held out of training; larger is better
            (negate a loss), NaN is never better. It may load the state dict into a network
            and reset its BatchNorm there, but must not change it.
        metrics: The K ingredients' own metrics, where they are known; otherwise each is
            evaluated once. The best ingredient is not evaluated again.

    Returns:
        The soup, and one `Trial` for each ingredient in the order in which they were tried.

    Raises:
        ConfigError: If there is no state, `metrics` do not fit, or all of them are NaN.
        MergeError: If the states do not fit each other, or hold NaN.

    Example:
        >>> import torch
        >>> states = [{"w": torch.tensor([x])} for x in (0.0, 3.0, 9.0)]
        >>> soup, trace = greedy_soup(states, lambda state: -abs(state["w"].item() - 2))
        >>> soup, [(trial.candidate, trial.kept) for trial in trace]
        ({'w': tensor([1.5000])}, [(1, True), (0, True), (2, False)])
    """
    if metrics is None:
        metrics = [evaluate(dict(_read(state))) for state in states]

    def trial(candidate: StateDict, _best: float) -> tuple[float | None, int | None]:
        return evaluate(candidate), None

    return _search(states, metrics, trial, reused=None)


def greedy_soup_by_counts(
    states: Sequence[Source],
    count: Callable[[StateDict], Iterable[tuple[int, int]]],
    total: int,
    correct: Sequence[int] | None = None,
) -> tuple[StateDict, list[Trial]]:
    """The greedy soup for accuracy, without the work that cannot change it.

    A candidate is dropped as soon as it would not be better than the soup so far even if all
    examples still to come were right. The result is that of `greedy_soup`. The sooner the
    examples come that networks get wrong, the more is saved; their order must stay the same.

    Args:
        states: K state dicts with the same names and shapes, paths of files of weights, or
            functions that read them.
        count: Yields, batch by batch, how many predictions of a state dict are correct and
            how many examples the batch has. It is left off where a candidate is dropped, so
            it should compute a batch only when it is asked for it.
        total: How many examples there are.
        correct: How many the ingredients get right, where that is known.

    Returns:
        The soup, and the trace as in `greedy_soup`; its metrics are accuracies.

    Raises:
        ConfigError: As in `greedy_soup`, and if the batches do not add up to `total`.
    """
    if total <= 0:
        raise ConfigError(f"greedy soup: {total} held-out examples; give at least one")
    if correct is None:
        correct = [_count(count(dict(_read(state))), total, None)[0] for state in states]

    def trial(candidate: StateDict, best: float) -> tuple[float | None, int | None]:
        right, seen = _count(count(candidate), total, best)
        return (None if seen < total else right), seen

    soup, trace = _search(states, correct, trial, reused=0)
    return soup, [
        replace(
            line,
            alone=line.alone / total,
            metric=None if line.metric is None else line.metric / total,
        )
        for line in trace
    ]


def hardest_first(hits: Tensor) -> Tensor:
    """An order of held-out examples in which `greedy_soup_by_counts` drops candidates soonest.

    What most ingredients get wrong, their average gets wrong as a rule; a candidate is dropped
    once it has as many errors as the soup so far.

    Hits, `(K, N)`, say which of N examples each of K ingredients gets right; the indices are
    `(N,)`, of equally hard ones the earlier first.
    """
    return torch.as_tensor(hits).sum(dim=0).argsort(stable=True)


def _search(
    states: Sequence[Source],
    metrics: Sequence[float],
    evaluate: Callable[[StateDict, float], tuple[float | None, int | None]],
    reused: int | None,
) -> tuple[StateDict, list[Trial]]:
    metrics = [float(metric) for metric in metrics]
    if not len(states) or len(metrics) != len(states):
        raise ConfigError(
            f"greedy soup: {len(metrics)} metrics for {len(states)} states; give at least one "
            "state, and one metric for each"
        )
    if all(math.isnan(metric) for metric in metrics):
        raise ConfigError("greedy soup: every ingredient's metric is NaN; check the evaluation")
    keys = [-math.inf if math.isnan(metric) else metric for metric in metrics]
    order = sorted(range(len(states)), key=lambda index: -keys[index])

    first = order[0]
    soup = _RunningMean(_read(states[first]), f"state {first}")
    best = metrics[first]
    trace = [Trial(first, best, best, True, reused)]
    for index in order[1:]:
        state = soup.checked(_read(states[index]), f"state {index}")
        metric, examples = evaluate(soup.with_another(state), best)
        kept = metric is not None and metric > best
        if metric is not None and kept:
            soup.add(state)
            best = metric
        trace.append(Trial(index, metrics[index], metric, kept, examples))
    return soup.mean(), trace


def _read(source: Source) -> Mapping[str, Tensor]:
    return opened(source() if callable(source) and not isinstance(source, nn.Module) else source)


def _count(batches: Iterable[tuple[int, int]], total: int, best: float | None) -> tuple[int, int]:
    right = seen = 0
    for correct, examples in batches:
        right += int(correct)
        seen += int(examples)
        if best is not None and seen < total and right + total - seen <= best:
            return right, seen
    if seen != total:
        raise ConfigError(
            f"greedy soup: the batches held {seen} examples, not the {total} that were announced"
        )
    return right, seen


class _RunningMean:
    """The sum of the states so far in float64, so that none of them need be kept."""

    def __init__(self, first: Mapping[str, Tensor], name: str) -> None:
        self.count = 1
        self.name = name
        self.table = check_alike([first], [name])
        self.types = {key: entry.code for key, entry in self.table.items()}
        self.sums: StateDict = {}
        # Where infinity has its place, and what must not differ: the same in all.
        self.masks: StateDict = {}
        self.fixed = {
            key: (first[key].clone(), why)
            for key, entry in self.table.items()
            if (why := must_agree(key, entry, self.table))
        }
        # Of two factors those that have been the same in all so far.
        self.factors = {
            (key, other): {key: first[key].clone(), other: first[other].clone()}
            for key in self.table
            for other in other_factors(key, self.table)
        }
        for key, value in first.items():
            value = value.detach()
            if is_numeric(value):
                check_finite(f"{name}: '{key}'", value, [value])
                if not is_finite(value):
                    self.masks[key] = value.clone()
                self.sums[key] = value.to(wide(value), copy=True)
            else:
                self.sums[key] = value.clone()

    def checked(self, state: Mapping[str, Tensor], name: str) -> Mapping[str, Tensor]:
        """The state under the first one's names, checked to fit it."""
        tables = [self.table, table_of(state)]
        names = [self.name, name]
        own = common_names(tables, names)[1]
        renamed = {key: state[own[key]].detach() for key in self.table if key in own}
        for key in self.table.keys() - renamed.keys():
            renamed[key] = self.sums[key]
        common_entries([self.table, table_of(renamed)], names)
        for key, (value, why) in self.fixed.items():
            if not torch.equal(renamed[key].to(value), value):
                raise ArchitectureMismatchError(f"'{key}' of {name} {why}")
        for pair, same in self.factors.items():
            for key in pair:
                if key in same and not torch.equal(renamed[key].to(same[key]), same[key]):
                    del same[key]
            if not same:
                raise not_linear(*pair)
        for key, value in renamed.items():
            others = [self.masks[key].to(value.device)] if key in self.masks else []
            check_finite(f"{name}: '{key}'", value, others)
            for mask in others:
                check_finite(f"{self.name}: '{key}'", mask, [value])
        return renamed

    def with_another(self, state: Mapping[str, Tensor]) -> StateDict:
        merged: StateDict = {}
        for name, total in self.sums.items():
            if is_numeric(total):
                total = (total + state[name].to(total)).div_(self.count + 1)
                # As it would be in the soup: a narrower type may not hold it.
                merged[name] = total.to(torch_type(self._type_with(name, state[name])))
            else:
                merged[name] = total.clone()
        return merged

    def add(self, state: Mapping[str, Tensor]) -> None:
        self.count += 1
        for name, total in self.sums.items():
            if is_numeric(total):
                total.add_(state[name].to(total))
                self.types[name] = self._type_with(name, state[name])

    def mean(self) -> StateDict:
        return {
            name: (total / self.count).to(torch_type(self.types[name]))
            if is_numeric(total)
            else total.clone()
            for name, total in self.sums.items()
        }

    def _type_with(self, name: str, value: Tensor) -> str:
        return common_type([self.types[name], entry_of(name, value).code])
