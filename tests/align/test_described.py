"""Specs of a user's own: right ones are the derived ones, wrong ones are refused or frozen."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import Attention, Flattened, Grouped, Perceptron, ResNet20, Sorting, randomised
from torch import Tensor, nn

from lightning_merge.align import PermutationSpec, WeightMatching
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.listed_groups import Entry

Description = dict[str, list[Entry]]

PERCEPTRON: Description = {
    "one": [("one.weight", 0), ("one.bias", 0), ("two.weight", 1)],
    "two": [("two.weight", 0), ("two.bias", 0), ("out.weight", 1)],
}
FLATTENED: Description = {
    "conv": [("conv.weight", 0), ("conv.bias", 0), ("fc.weight", 1, 0, 9)],
    "fc": [("fc.weight", 0), ("fc.bias", 0), ("out.weight", 1)],
}


class Halting(Perceptron):
    """Stops early or not, which depends on the data: torch.export cannot follow it."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.one(x))
        if h.sum().item() < 0:
            return x[:, :3]
        return self.out(F.relu(self.two(h)))


class Concatenated(nn.Module):
    """Two layers side by side: each is a part of the next one's input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 6)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.left(x).relu(), self.right(x).relu()], 1))


CONCATENATED: Description = {
    "left": [("left.weight", 0), ("left.bias", 0), ("out.weight", 1, 0)],
    "right": [("right.weight", 0), ("right.bias", 0), ("out.weight", 1, 4)],
}
RIGHT = {
    "perceptron": (Perceptron, (2, 5), PERCEPTRON),
    "flattened": (Flattened, (2, 3, 9, 9), FLATTENED),
    "concatenated": (Concatenated, (2, 5), CONCATENATED),
}


def quietly(
    groups: object, model: nn.Module, x: Tensor, matching: str = ".*frozen"
) -> PermutationSpec:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=matching)
        return PermutationSpec.from_groups(groups, model, x)  # type: ignore[arg-type]


def moved(spec: PermutationSpec) -> dict[str, set[tuple[object, ...]]]:
    return {
        group.name: {(*m.place, *map(tuple, m.index.tolist())) for m in group.members}
        for group in spec.groups
    }


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_description_is_what_would_have_been_derived(case: str) -> None:
    build, shape, description = RIGHT[case]
    model, x = build(), torch.zeros(shape)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spec = quietly(description, model, x)
    expected = PermutationSpec.from_model(model, x)
    assert moved(spec) == moved(expected)
    assert (spec.shapes, spec.buffers, spec.frozen) == (expected.shapes, expected.buffers, [])
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("build", [ResNet20, Attention, Grouped, Sorting])
def test_derived_groups_pass_as_a_users_own(build: type[nn.Module]) -> None:
    shapes = {ResNet20: (2, 3, 16, 16), Attention: (2, 6, 5), Grouped: (2, 3, 8, 8)}
    x = torch.randn(shapes.get(build, (2, 5)))  # type: ignore[arg-type]
    model = build()
    spec = PermutationSpec.from_model(model, x)
    assert moved(quietly(spec.groups, model, x)) == moved(spec)


def test_a_network_that_cannot_be_exported_is_aligned_by_its_description() -> None:
    a, b = randomised(Halting()), Halting()
    x = torch.randn(2, 5)
    with pytest.raises(AlignmentError, match="cannot be exported"):
        PermutationSpec.from_model(a, x)
    spec = quietly(PERCEPTRON, a, x)
    b.load_state_dict(spec.apply(a.state_dict(), spec.random(torch.Generator().manual_seed(1))))
    assert not torch.equal(b.one.weight, a.one.weight)
    torch.testing.assert_close(b(x), a(x))
    found = spec.apply(b.state_dict(), WeightMatching().match(spec, a.state_dict(), b.state_dict()))
    assert all(torch.equal(found[name], tensor) for name, tensor in a.state_dict().items())


def without(name: str, entry: Entry) -> Description:
    return {**PERCEPTRON, name: [e for e in PERCEPTRON[name] if e != entry]}


@pytest.mark.parametrize(
    "wrong", [("one.weight", 0), ("one.bias", 0), ("two.weight", 1)], ids=lambda e: e[0]
)
def test_a_group_that_lacks_a_member_is_frozen_by_name(wrong: Entry) -> None:
    with pytest.warns(UserWarning, match="Perceptron: one: permuting it changes the output"):
        spec = PermutationSpec.from_groups(without("one", wrong), Perceptron(), torch.zeros(2, 5))
    assert [group.name for group in spec.groups] == ["two"]
    assert len(spec.frozen) == 1
    assert spec.frozen[0].startswith("one: ")


def test_running_statistics_must_be_listed_though_they_are_at_their_default() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    entries: list[Entry] = [("0.weight", 0), ("0.bias", 0), ("3.weight", 1)]
    entries += [("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0)]
    x = torch.zeros(2, 3, 4, 4)
    with pytest.warns(UserWarning, match="hidden: permuting it changes"):
        assert not PermutationSpec.from_groups({"hidden": entries}, model, x).groups
    spec = quietly({"hidden": [*entries, ("1.running_var", 0)]}, model, x)
    assert moved(spec)["hidden"] == moved(PermutationSpec.from_model(model, x))["0"]


def test_classes_and_tensors_that_nothing_reads_are_frozen() -> None:
    model = Perceptron()
    model.idle = nn.Parameter(torch.randn(4))
    description: Description = {
        "classes": [("out.weight", 0), ("out.bias", 0)],
        "idle": [("idle", 0)],
        **PERCEPTRON,
    }
    with pytest.warns(UserWarning, match="frozen") as caught:
        spec = PermutationSpec.from_groups(description, model, torch.zeros(2, 5))
    assert [group.name for group in spec.groups] == ["one", "two"]
    lines = [str(w.message) for w in caught]
    assert any("classes: permuting it changes the output" in line for line in lines)
    assert any("idle: the output does not depend on it" in line for line in lines)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"one": [("three.weight", 0)]}, r"'one'.*no tensor 'three\.weight'"),
        ({"one": [("one.weight", 2)]}, r"no axis 2"),
        ({"one": [("one.weight", 0), ("two.weight", 0)]}, r"6 units do not fit.*offset, repeat"),
        ({"one": [("one.weight", 0), ("two.weight", 1, 1)]}, r"6 units do not fit"),
        ({"one": [("one.weight", 0), ("two.weight", 1, 0, 0)]}, r"6 units do not fit"),
        ({"one": [("one.weight", 0), ("one.weight", 0)]}, r"position 0 .*listed twice"),
        ({"a": [("one.bias", 0)], "b": [("one.bias", 0)]}, r"listed twice, in groups 'a' and 'b'"),
        ({"one": []}, r"'one' lists nothing"),
    ],
)
def test_descriptions_that_do_not_fit(description: Description, message: str) -> None:
    with pytest.raises(AlignmentError, match=message):
        PermutationSpec.from_groups(description, Perceptron(), torch.zeros(2, 5))


def test_shared_weights_are_listed_under_any_of_their_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 6)
            self.again = self.one
            self.inside, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.again(self.one(self.inside(x)).relu()).relu())

    model, x = Tied(), torch.zeros(2, 5)
    expected = moved(PermutationSpec.from_model(model, x)).popitem()[1]
    outside: list[Entry] = [("inside.weight", 0), ("inside.bias", 0), ("out.weight", 1)]
    names = [("one",), ("again",), ("one", "again")]
    for listed in names:
        shared: list[Entry] = [
            entry
            for name in listed
            for entry in ((f"{name}.weight", 0), (f"{name}.weight", 1), (f"{name}.bias", 0))
        ]
        assert moved(quietly({"all": [*outside, *shared]}, model, x))["all"] == expected


def test_a_network_whose_output_is_random_cannot_be_verified() -> None:
    class Noisy(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    with pytest.raises(AlignmentError, match="another output each time"):
        PermutationSpec.from_groups(PERCEPTRON, Noisy(), torch.zeros(2, 5))


class Complex(nn.Module):
    """Complex weights, and real ones behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 4, dtype=torch.complex64)
        self.one, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.one(self.mix(x.to(self.mix.weight.dtype)).abs()).relu())


def test_units_of_complex_weights_and_beside_them_are_verified() -> None:
    groups = {
        "mix": [("mix.weight", 0), ("mix.bias", 0), ("one.weight", 1)],
        "one": [("one.weight", 0), ("one.bias", 0), ("out.weight", 1)],
    }
    model, x = Complex(), torch.randn(2, 5)
    spec = quietly(groups, model, x)
    assert [group.name for group in spec.groups] == ["mix", "one"]
    before = model(x)
    model.load_state_dict(spec.apply(model, spec.random(torch.Generator().manual_seed(1))))
    torch.testing.assert_close(model(x), before)
    wrong = {"mix": [*groups["mix"][:1], groups["mix"][2]]}
    with pytest.warns(UserWarning, match="changes the output"):
        assert not PermutationSpec.from_groups(wrong, model, x).groups
