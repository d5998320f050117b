"""Networks that the engine cannot know, or cannot follow."""

import inspect
import random
from typing import Any

import numpy as np
import pytest
import torch
from networks import Branching, Perceptron, randomised
from torch import Tensor, nn

from lightning_merge import ActivationMatching, LeastSquares, repair
from lightning_merge.align import PermutationSpec
from lightning_merge.errors import AlignmentError
from lightning_merge.randomness import random_state


@torch.library.custom_op("lightning_merge_tests::ramp", mutates_args=())
def ramp(x: Tensor) -> Tensor:
    """Not a word of it says that each unit is treated in another way."""
    return x * torch.linspace(-1, 2, x.shape[-1], dtype=x.dtype)


@ramp.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Ramped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(ramp(self.one(x))).relu())


def test_an_operator_of_the_users_own_freezes_what_it_touches() -> None:
    model = randomised(Ramped()).double().eval()
    x = torch.randn(4, 5, dtype=torch.float64)
    spec = PermutationSpec.from_model(model, x)
    assert [group.name for group in spec.groups] == ["two"]
    reasons = [line for line in spec.frozen if "ramp" in line]
    assert {line.split()[0] for line in reasons} == {"one.weight", "one.bias", "two.weight"}
    before, state = model(x), model.state_dict()
    permuted = spec.apply(state, {"two": torch.arange(6).flip(0)})
    assert torch.equal(permuted["two.bias"], state["two.bias"].flip(0))
    torch.testing.assert_close(torch.func.functional_call(model, permuted, x), before)
    # What is frozen was not free: the same permutation around the operator matters.
    wrong = {n: state[n].flip(0) for n in ("one.weight", "one.bias")}
    wrong["two.weight"] = state["two.weight"].flip(1)
    assert not torch.allclose(torch.func.functional_call(model, wrong, x), before)


def test_what_cannot_be_exported_names_the_line_that_depends_on_the_data() -> None:
    lines, first = inspect.getsourcelines(Branching)
    number = first + next(i for i, line in enumerate(lines) if ".item()" in line)
    with pytest.raises(AlignmentError, match=rf"networks\.py.*line {number}") as caught:
        PermutationSpec.from_model(Branching(), torch.randn(2, 5))
    assert "\n" not in str(caught.value)
    assert "Branching cannot be exported" in str(caught.value)


class Region(nn.Module):
    """A part in another precision, between bounds that are off (as in quantised networks)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.register_buffer("low", torch.tensor(-torch.inf))
        self.register_buffer("high", torch.tensor(torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        with torch.autocast(x.device.type, enabled=False):
            x, square = (x.float() + 1).relu(), x.float().square()
            x = x * square
        return self.out(self.two(x.to(self.two.weight)).clamp(self.low, self.high).relu())


def test_regions_of_autocast_and_infinite_bounds_are_seen_through() -> None:
    model = Region()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    x = torch.randn(4, 5)
    spec = PermutationSpec.from_model(model, x)
    assert [group.name for group in spec.groups] == ["one", "two"]
    permuted = spec.apply(model.state_dict(), spec.random(torch.Generator().manual_seed(1)))
    assert not torch.equal(permuted["two.weight"], model.two.weight)
    torch.testing.assert_close(torch.func.functional_call(model, permuted, x), model(x))


class LearnedStatistics(nn.Module):
    """Parameters where a BatchNorm has its statistics: there is no derivative for them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.mean, self.spread = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.batch_norm(self.one(x), self.mean, self.spread.abs() + 0.1)
        return self.out(x.relu())


def test_an_operator_without_a_derivative_is_verified_by_running_it() -> None:
    model = randomised(LearnedStatistics()).double().eval()
    x = torch.randn(4, 5, dtype=torch.float64)
    spec = PermutationSpec.from_model(model, x)
    (group,) = spec.groups
    assert {member.tensor for member in group.members} == {
        "one.weight", "one.bias", "mean", "spread", "out.weight"
    }  # fmt: skip
    permuted = spec.apply(model, {group.name: torch.arange(8).flip(0)})
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(model, permuted, x), model(x))


class WithRest(nn.Module):
    """Logits, and something that is one number or always the same."""

    def __init__(self, rest: str, classes: int = 3) -> None:
        super().__init__()
        self.rest = rest
        self.one, self.out = nn.Linear(5, 8), nn.Linear(8, classes)
        self.temperature = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Any:
        logits = self.out(self.one(x).relu())
        return {
            "a number": (logits, self.temperature.exp()),
            "a loss of zero": {"logits": logits, "loss": logits.new_zeros(())},
            "the same everywhere": [logits, torch.ones_like(logits)],
            "nothing": logits,
        }[self.rest]


@pytest.mark.parametrize(
    ("rest", "classes", "examples"),
    [
        ("a number", 3, 4),
        ("a loss of zero", 3, 4),
        ("the same everywhere", 3, 4),
        ("nothing", 1, 1),
    ],
)
def test_outputs_that_do_not_vary_are_no_obstacle(rest: str, classes: int, examples: int) -> None:
    model, x = WithRest(rest, classes), torch.randn(examples, 5)
    spec = PermutationSpec.from_model(model, x)
    assert [(group.name, group.size) for group in spec.groups] == [("one", 8)]
    permuted = spec.apply(model.state_dict(), spec.random(torch.Generator().manual_seed(1)))
    assert not torch.equal(permuted["one.weight"], model.one.weight)
    after = torch.func.functional_call(model, permuted, x)
    torch.testing.assert_close(after, model(x))


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64])
def test_a_network_without_an_output_of_real_numbers_is_refused(kind: torch.dtype) -> None:
    class Other(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits.to(kind) if kind.is_complex else logits.argmax(1)

    model = Other(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(AlignmentError, match="let forward return logits") as caught:
        PermutationSpec.from_model(model, torch.randn(4, 5))
    assert "\n" not in str(caught.value)


class WithEmptyParts(nn.Module):
    """A head without classes beside the one that is used, and a prompt of no tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out, self.other = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 0)
        self.prompt = nn.Parameter(torch.empty(0, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.one(x).relu(), self.prompt])
        return self.out(x), self.other(x)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_parts_without_a_number_are_no_obstacle() -> None:
    torch.manual_seed(0)
    a, b = WithEmptyParts(), WithEmptyParts()
    batches = [torch.randn(16, 5), torch.randn(16, 5)]
    spec = PermutationSpec.from_model(a, batches[0])
    permuted = spec.apply(a.state_dict(), spec.random(torch.Generator().manual_seed(1)))
    b.load_state_dict(permuted)
    assert not torch.equal(b.one.weight, a.one.weight)
    back = ActivationMatching().align(spec, a, b, batches)
    torch.testing.assert_close(back, dict(a.state_dict()))
    with torch.no_grad():
        b.one.weight *= 3
    assert repair(b, a, a, batches) == 1
    assert LeastSquares([a], batches)(b) == 2
    torch.testing.assert_close(b(batches[0])[0], a(batches[0])[0])


class AlwaysDropped(nn.Module):
    """Monte Carlo dropout: on at inference, too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Linear(5, 8), nn.LayerNorm(8)
        self.two, self.back, self.out = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.one(x), 0.3, training=True)
        inner = nn.functional.dropout(self.two(self.norm(x)).relu(), 0.3, training=True)
        return self.out(nn.functional.layer_norm(x + self.back(inner), (8,)))


def test_dropout_that_is_always_on_takes_units_in_any_order_but_no_rotation() -> None:
    model = randomised(AlwaysDropped()).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    spec = PermutationSpec.from_model(model, x)
    assert {group.size for group in spec.groups} == {8, 12}
    shuffled = spec.apply(model.state_dict(), spec.random(torch.Generator().manual_seed(1)))
    other = AlwaysDropped().double()
    other.load_state_dict(shuffled)
    torch.manual_seed(0)
    means = [torch.stack([one(x) for _ in range(4000)]).mean(0) for one in (model, other)]
    torch.testing.assert_close(*means, atol=0.05, rtol=0.05)
    every = PermutationSpec.from_model(model, x, symmetries="all")
    assert {group.size: group.symmetry for group in every.groups} == {
        8: "permutation",
        12: "scaled",
    }


class Random(nn.Module):
    """Draws anew whenever it is run, so that no two runs agree."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.alpha_dropout(self.one(x), 0.3, training=True))


def test_what_a_verification_found_is_said() -> None:
    with (
        pytest.warns(UserWarning, match="permuting it changes the output"),
        pytest.raises(AlignmentError, match=r"\(permuting it changes the output by .*\): list"),
    ):
        PermutationSpec.from_model(randomised(Random()), torch.randn(4, 5))


def test_an_empty_batch_is_no_example() -> None:
    with pytest.raises(AlignmentError, match="no examples"):
        PermutationSpec.from_model(nn.Linear(5, 3), torch.randn(0, 5))


def test_a_first_export_that_draws_leaves_all_generators_as_they_were(monkeypatch) -> None:
    export = torch.export.export

    def drawing(*args, **options):
        random.random()
        np.random.random()  # noqa: NPY002
        torch.rand(1)
        return export(*args, **options)

    monkeypatch.setattr(torch.export, "export", drawing)
    model, x = Perceptron(), torch.randn(2, 5)
    before = random_state()
    PermutationSpec.from_model(model, x)
    assert random.getstate()[1] == tuple(before["python"][1].tolist())
    assert torch.equal(random_state()["numpy"][1], before["numpy"][1])
    assert torch.equal(torch.get_rng_state(), before["torch"])


class Complex(nn.Module):
    """Complex weights, and real ones behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 4, dtype=torch.complex64)
        self.one, self.out = nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.one(self.mix(x.to(torch.complex64)).abs()).relu())


@pytest.mark.parametrize("only", [True, False])
def test_complex_numbers_stay_and_are_said_to(only: bool) -> None:
    model = Complex()
    if only:
        model.one, model.out = nn.Identity(), nn.Identity()
    spec = PermutationSpec.from_model(model, torch.randn(4, 5))
    assert [group.name for group in spec.groups] == ([] if only else ["one"])
    assert "mix.weight: complex numbers stay where they are" in spec.frozen


@torch.library.custom_op("lightning_merge_tests::single", mutates_args=())
def single(x: Tensor) -> Tensor:
    """Runs in one precision only."""
    if x.dtype != torch.float32:
        raise RuntimeError("single precision only")
    return 2 * x


@single.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Single(Ramped):
    """A network that runs in one precision only."""

    def forward(self, x: Tensor) -> Tensor:
        return single(super().forward(x))


def test_what_does_not_run_in_float64_is_one_line() -> None:
    with pytest.raises(AlignmentError, match=r"not run in float64.*single precision only"):
        PermutationSpec.from_model(Single(), torch.randn(4, 5))
