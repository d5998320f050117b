"""What a pipeline may expect of every matching, a user's own included."""

import numpy as np
import pytest
import torch
from networks import Perceptron, randomised
from strangers import Stranger, image_batches, quiet_trainer, randomise
from torch import Tensor, nn

from lightning_merge.align import (
    ActivationMatching,
    Aligned,
    CCAMatching,
    LearnedMatching,
    Matching,
    MergeMany,
    PermutationSpec,
    WeightMatching,
    agreement,
    all_to_one,
    widened,
    zip_it,
)
from lightning_merge.align.matching.cca import DEFAULT_GAMMA, GAMMAS
from lightning_merge.align.matching.matching import matchings
from lightning_merge.errors import AlignmentError
from lightning_merge.modules import MergeModule


def pair() -> tuple[PermutationSpec, nn.Module, nn.Module, list[Tensor]]:
    a, b = randomised(Perceptron(), 1), randomised(Perceptron(), 2)
    batches = [torch.randn(40, 5, generator=torch.Generator().manual_seed(3))]
    return PermutationSpec.from_model(a, batches[0]), a, b, batches


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


class Reversed(Matching):
    """A user's own: `align` alone."""

    def align(self, spec, model_a, model_b, batches, *, score=None, progress=False):
        order = {group.name: torch.arange(group.size).flip(0) for group in spec.groups}
        return spec.apply(model_b, order)


class Renamed(Reversed):
    label = "Turned"


def test_a_matching_of_ones_own_needs_align_only() -> None:
    spec, a, b, batches = pair()
    matching = Reversed()
    assert (matching.label, Renamed.label, matching.chooses) == ("Reversed", "Turned", False)
    found = matching.aligned(spec, a, b, batches)
    assert isinstance(found, Aligned)
    assert found.choice is None
    assert torch.equal(found.state["one.weight"], b.one.weight.flip(0))
    assert torch.equal(found.state["two.weight"], b.two.weight.flip(0, 1))
    with pytest.raises(AttributeError):
        found.state = {}


def test_labels_are_those_of_the_papers_unless_a_class_has_its_own() -> None:
    class Quick(ActivationMatching):
        pass

    class Again(Reversed):
        pass

    assert [m.label for m in (ActivationMatching, WeightMatching, CCAMatching)] == [
        "Permute",
        "Weight matching",
        "CCA",
    ]
    assert (Quick.label, Again.label) == ("Permute", "Again")


def test_without_a_score_gamma_is_the_stated_default() -> None:
    spec, a, b, batches = pair()
    assert DEFAULT_GAMMA in GAMMAS
    assert CCAMatching().chooses
    assert not CCAMatching(gamma=1.0).chooses
    found = CCAMatching().aligned(spec, a, b, batches)
    assert found.choice == {"gamma": DEFAULT_GAMMA}
    assert same(found.state, CCAMatching(gamma=DEFAULT_GAMMA).align(spec, a, b, batches))
    assert same(found.state, CCAMatching().align(spec, a, b, batches))
    assert CCAMatching(gamma=1.0).aligned(spec, a, b, batches).choice is None


def test_the_default_gamma_undoes_a_planted_permutation_under_noise() -> None:
    # About as many examples as units: without a ridge the map follows the noise.
    generator = torch.Generator().manual_seed(0)
    model, twin = randomised(Perceptron(width=24)), Perceptron(width=24)
    x, new = (torch.randn(count, 5, generator=generator) for count in (30, 200))
    spec = PermutationSpec.from_model(model, x)
    permuted = spec.apply(model, spec.random(generator))
    twin.load_state_dict(
        {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in permuted.items()}
    )
    errors = {}
    with torch.no_grad():
        expected = model(new)
        for gamma in (None, 0.0):
            found = CCAMatching(gamma).align(spec, model, twin, [x])
            mean = {name: (tensor + found[name]) / 2 for name, tensor in model.named_parameters()}
            output = torch.func.functional_call(model, mean, new)
            errors[gamma] = float((output - expected).norm() / expected.norm())
    assert errors[None] < 0.25
    assert errors[None] < errors[0.0] / 2


def test_a_score_chooses_gamma_and_every_candidate_is_reported() -> None:
    spec, a, b, batches = pair()
    aim = CCAMatching(gamma=1.0).align(spec, a, b, batches)["one.weight"]

    def closeness(state: dict[str, Tensor]) -> float:
        return -float((state["one.weight"] - aim).norm())

    found = CCAMatching(candidates=[0.001, 1.0]).aligned(spec, a, b, batches, score=closeness)
    assert found.choice["gamma"] == 1.0
    assert list(found.choice["scores"]) == ["0.001", "1"]
    assert found.choice["scores"]["1"] == 0.0 > found.choice["scores"]["0.001"]
    assert torch.equal(found.state["one.weight"], aim)


def test_many_networks_are_mapped_without_a_gamma_of_their_own() -> None:
    spec, a, b, batches = pair()
    c = randomised(Perceptron(), 4)
    states = all_to_one(CCAMatching(), spec, [a, b, c], batches)
    for state, model in zip(states[1:], (b, c), strict=True):
        assert same(state, CCAMatching(DEFAULT_GAMMA).align(spec, a, model, batches))
    scored = all_to_one(CCAMatching(candidates=[10.0]), spec, [a, b], batches, score=lambda _: 0)
    assert same(scored[1], CCAMatching(10.0).align(spec, a, b, batches))


@pytest.mark.filterwarnings("ignore")
def test_a_merge_module_maps_its_ingredients_by_the_default_gamma() -> None:
    states = [randomise(Stranger(), seed).state_dict() for seed in (1, 2)]
    module = MergeModule(Stranger(), states, matching=CCAMatching())
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(module, image_batches(2))
    merged = {n: t for n, t in module.state_dict().items() if t.is_floating_point()}
    # Neither the unaligned mean nor anything that is not finite.
    weights = [n for n in merged if n in states[0] and merged[n].ndim > 1]
    assert weights
    assert all(torch.isfinite(tensor).all() for tensor in merged.values())
    mean = (states[0][weights[0]] + states[1][weights[0]]) / 2
    assert not torch.allclose(merged[weights[0]], mean, atol=1e-3)


def test_weights_are_matched_from_networks_as_from_their_state_dicts() -> None:
    spec, a, b, _ = pair()
    c = randomised(Perceptron(), 5)
    expected = WeightMatching().match(spec, a.state_dict(), b.state_dict())
    found = WeightMatching().match(spec, a, b)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    states = [model.state_dict() for model in (a, b, c)]
    for one, other in zip(
        MergeMany().match(spec, [a, b, c]), MergeMany().match(spec, states), strict=True
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert agreement(spec, [a, b, c]) == agreement(spec, states)
    assert same(spec.apply(b, found), spec.apply(b.state_dict(), found))
    with pytest.raises(AlignmentError, match="a network or its state dict is needed"):
        WeightMatching().match(spec, a, [b])


class Stated(nn.Linear):
    """A layer that keeps something beside its tensors."""

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class Counted(Stated):
    """One that keeps an array, which is no tensor either."""

    def get_extra_state(self):
        return np.arange(3.0)


def zipped(spec, a, b, x):
    return torch.cat(zip_it(spec, a, b, [x], "0")(x))


def padded(_spec, a, b, x):
    narrow = nn.Sequential(type(b[0])(5, 4), nn.ReLU(), nn.Linear(4, 3))
    a.load_state_dict(widened(randomised(narrow, 3), a, x), strict=False)
    return a(x)


def by(matching):
    def run(spec, a, b, x):
        b.load_state_dict(all_to_one(matching, spec, [a, b], [x])[1])
        return b(x)

    return run


USES = {entry.name: by(entry.value()) for entry in matchings if entry.name != "LearnedMatching"}
USES |= {f"{one.__name__} all": by(one(symmetries="all")) for one in (WeightMatching, MergeMany)}
USES |= {"LearnedMatching": by(LearnedMatching(steps=2)), "zip": zipped, "pad": padded}


@pytest.mark.parametrize("use", USES)
def test_state_that_is_no_tensor_changes_nothing(use: str) -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(3))
    found = []
    for layer in (nn.Linear, Stated, Counted):
        a, b = (
            randomised(nn.Sequential(layer(5, 6), nn.ReLU(), nn.Linear(6, 3)), seed)
            for seed in (1, 2)
        )
        spec = PermutationSpec.from_model(a, x, symmetries="all")
        found.append(USES[use](spec, a, b, x).detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
