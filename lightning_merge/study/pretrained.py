"""The network that a pool's ingredients were fine-tuned from."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_merge.checkpoint import StateDict, fit_names, prefixed, read_checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.study.pool import Pool
from lightning_merge.study.task_pool import TaskPool


def check_pretrained(pretrained: str | None, pool: Pool, what: str) -> None:
    """Checks that it is known what the ingredients started from.

    Raises:
        ConfigError: If neither the recipe nor the pool says it.
        CheckpointError: If there is no such file.
    """
    if pretrained is not None and not Path(pretrained).exists():
        read_checkpoint(pretrained)
    if pretrained is None and not isinstance(pool, TaskPool):
        raise ConfigError(
            f"{what} needs the network that the ingredients were fine-tuned from: set its "
            "`pretrained` to that checkpoint"
        )


def pretrained_state(pretrained: str | None, pool: Pool, what: str) -> StateDict:
    """The pre-trained weights, with the names of the pool's ingredients.

    Args:
        pretrained: A checkpoint; None for what the pool has, if it is one of tasks.
        pool: The pool. Heads that it shares among its ingredients are these weights', too.
        what: Who asks, for the message.

    Raises:
        ConfigError: If neither says it.
        MergeError: If the file cannot be read, or is of another architecture.
    """
    check_pretrained(pretrained, pool, what)
    if pretrained is None:
        assert isinstance(pool, TaskPool)
        return pool.pretrained
    expected = pool.module.state_dict()
    state = prefixed(read_checkpoint(pretrained).state_dict, expected)
    heads = {name: pool.states[0][name] for name in pool.heads}
    return fit_names({**state, **heads}, expected, pretrained)


def without(names: Iterable[str], states: Sequence[StateDict]) -> list[StateDict]:
    """The state dicts without some of their tensors: heads that all of them share."""
    left = set(names)
    return [{name: value for name, value in state.items() if name not in left} for state in states]
