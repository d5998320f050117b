"""Alignments that took long, kept beside a study's pieces: nobody does them a second time."""

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from lightning_merge.recipe.build import Plain
from lightning_merge.recipe.cache import text_of
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.kept import Alignment
from lightning_merge.study.claims import Claims
from lightning_merge.study.store import Store
from lightning_merge.study.work import make_work

LONG = 10.0
"""Seconds from which an alignment is worth a file."""


class ElsewhereError(Exception):
    """Another process makes the alignment of this key, which a piece needs."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class KeptAlignments:
    """The alignments of a repetition's pieces of work in a store.

    `settings` are all else that determines an alignment but for what its key says.
    """

    store: Store
    claims: Claims
    seed: int
    settings: Plain

    def __call__(self, key: tuple[Hashable, ...], make: Callable[[], Alignment]) -> Alignment:
        """What is kept under a key, or what `make` gives, unless another process makes it."""
        text = text_of(key)
        if text is None:
            return make()
        settings = {**self.settings, "of": text, "seed": self.seed}
        name = make_work("alignment", "Alignment", self.seed, settings).key
        if name in self.store:
            return self._read(name)
        with self.claims.claimed(name) as ours:
            if not ours:
                raise ElsewhereError(name)
            damage = self.store.damage(name)
            if damage == "":
                # Finished since.
                return self._read(name)
            if damage:
                place = self.store.folder / name
                warnings.warn(f"{place}: {damage}; the alignment is done again", stacklevel=2)
            made = make()
            if made.seconds >= LONG:
                self._write(name, made)
            return made

    def _write(self, name: str, made: Alignment) -> None:
        # Of one ingredient there is one, of all of them together none.
        choice = next(([one.text, one.details] for one in made.choices), None)
        tensors = {
            f"{number}.{tensor}": value
            for number, state in enumerate(made.states)
            for tensor, value in state.items()
        }
        result = {"seconds": made.seconds, "choice": choice, "states": len(made.states)}
        self.store.put(name, {**result, "settings": self.settings}, {"state_dict": tensors})

    def _read(self, name: str) -> Alignment:
        result, tensors = self.store.result(name), self.store.state(name)
        states = [
            {
                tensor.removeprefix(f"{number}."): value
                for tensor, value in tensors.items()
                if tensor.startswith(f"{number}.")
            }
            for number in range(result["states"])
        ]
        choices = () if result["choice"] is None else (Choice(*result["choice"]),)
        return Alignment(states, result["seconds"], choices)
