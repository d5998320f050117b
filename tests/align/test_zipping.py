"""ZipIt!: against its formulas written out, on planted pairs, and as modules and recipes."""

import copy
from itertools import combinations

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from networks import Attention, Flattened, Grouped, Perceptron, ResNet20
from strangers import quiet_trainer, randomise
from tiny_contexts import made_context
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge import PartialZipIt, PermutationSpec, Recipe, ZipIt, ZippedModule, zip_it
from lightning_merge.align import TransportMatching, TwoHeads, zip_units
from lightning_merge.align.zipping.zip_networks import zippable
from lightning_merge.errors import AlignmentError, ConfigError

IMAGES = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def by_hand(correlation, alpha, budget):
    """Clusters of the 2n units, as sets, by merging the best pair n times."""
    size = len(correlation) // 2
    clusters = [frozenset([unit]) for unit in range(2 * size)]
    worth = {frozenset(pair): correlation[tuple(pair)] for pair in combinations(range(2 * size), 2)}
    worth = {frozenset(frozenset([u]) for u in pair): value for pair, value in worth.items()}
    left = [budget, budget]

    def of(cluster):
        return int(min(cluster) >= size)

    def spend(network):
        for pair in worth:
            if {of(cluster) for cluster in pair} == {network}:
                worth[pair] = -np.inf

    for network in (0, 1):
        if not budget:
            spend(network)
    for _ in range(size):
        one, other = max(worth, key=worth.get)
        left[of(one)] -= of(one) == of(other)
        clusters = [cluster for cluster in clusters if cluster not in (one, other)]
        for third in clusters:
            least = min(worth[frozenset([one, third])], worth[frozenset([other, third])])
            worth[frozenset([one | other, third])] = alpha * least if least > 0 else least
        worth = {pair: value for pair, value in worth.items() if not pair & {one, other}}
        clusters.append(one | other)
        if of(one) == of(other) and not left[of(one)]:
            spend(of(one))
    return set(clusters)


def clusters_of(found):
    return {frozenset((found.cluster == k).nonzero()[:, 0].tolist()) for k in range(found.size)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("beta", [1.0, 0.6, 0.0])
def test_units_are_merged_as_the_greedy_rule_says(alpha, beta, seed):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.rand(200, 6, generator=generator) @ torch.rand(6, 14, generator=generator)
    correlation = torch.corrcoef((mixed + torch.rand(200, 14, generator=generator)).T)
    budget = int(7 / 2 * beta)
    expected = by_hand(correlation.double().numpy(), alpha, budget)
    assert clusters_of(zip_units(correlation, alpha, beta)) == expected
    found = zip_units(correlation, alpha, beta)
    merge, unmerge = found.merge(), found.unmerge()
    torch.testing.assert_close(
        merge[0] @ unmerge[0] + merge[1] @ unmerge[1], torch.eye(7, dtype=torch.float64)
    )


def test_alpha_zero_makes_pairs_and_beta_zero_makes_them_across():
    torch.manual_seed(1)
    correlation = torch.corrcoef(torch.randn(10, 300))
    across = zip_units(correlation, 0.0, 0.0)
    assert across.cluster.bincount().tolist() == [2] * 5
    assert sorted(across.cluster[:5].tolist()) == sorted(across.cluster[5:].tolist())
    within = zip_units(correlation, 0.0, 1.0)
    assert within.cluster.bincount().tolist() == [2] * 5


def test_a_unit_that_a_network_has_twice_is_merged_within_it():
    signal = torch.randn(400, 5, generator=torch.Generator().manual_seed(2))
    # a has s0 twice, and s1, s2, s3; b has s1, s2, s3, s4 and another s4.
    units = signal[:, [0, 0, 1, 2, 3, 1, 2, 3, 4, 4]]
    correlation = torch.corrcoef(units.T)
    expected = {frozenset(c) for c in ({0, 1}, {2, 5}, {3, 6}, {4, 7}, {8, 9})}
    assert clusters_of(zip_units(correlation, 0.3, 1.0)) == expected


def network(seed, width=6):
    return randomise(ResNet20(width), seed).eval()


@pytest.fixture(scope="module")
def spec():
    return PermutationSpec.from_model(network(0), IMAGES[:2])


def shuffled(spec, model):
    moved = copy.deepcopy(model)
    moved.load_state_dict(spec.apply(model, spec.random(torch.Generator().manual_seed(4))))
    return moved


def test_identical_and_shuffled_networks_give_the_network(spec):
    first = network(0)
    with torch.no_grad():
        first.bn1.weight[0] = first.bn1.bias[0] = 0  # a unit that never varies
        for other in (first, shuffled(spec, first)):
            merged = zip_it(spec, first, other, [IMAGES])
            for name, tensor in merged.state_dict().items():
                torch.testing.assert_close(tensor, first.state_dict()[name], msg=name)


@pytest.mark.parametrize(
    ("made", "shape"),
    [(Attention, (128, 6, 5)), (Grouped, (96, 3, 8, 8)), (Flattened, IMAGES.shape)],
)
def test_units_inside_heads_and_groups_are_ordered_and_not_zipped(made, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    first = made().eval()
    spec = PermutationSpec.from_model(first, x[:2])
    zipped = {group.name for group in zippable(spec)}
    inside = {group.name for group in spec.groups if group.blocks > 1 or group.level}
    assert zipped
    assert not zipped & inside
    merged = zip_it(spec, first, shuffled(spec, first), [x])
    torch.testing.assert_close(merged(x), first(x), rtol=1e-4, atol=1e-5)


def test_a_perceptron_is_zipped_as_the_formulas_say():
    torch.manual_seed(0)
    first, second = Perceptron(6).eval(), Perceptron(6).eval()
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(6))
    spec = PermutationSpec.from_model(first, x[:2])
    with torch.no_grad():
        for layer in (first.one, second.one, first.two, second.two):
            layer.bias += 0.5  # so that no unit is silent
        hidden = [torch.relu(m.one(x)) for m in (first, second)]
        deeper = [torch.relu(m.two(h)) for m, h in zip((first, second), hidden, strict=True)]
        maps = []
        for pair in (hidden, deeper):
            units = torch.cat(pair, 1).double().numpy()
            found = np.corrcoef(units.T)
            assert np.isfinite(found).all()
            clusters = sorted(by_hand(found, 1.0, int(len(found) / 4)), key=min)
            unmerge = torch.zeros(len(found), len(clusters))
            for column, cluster in enumerate(clusters):
                unmerge[list(cluster), column] = 1
            half = len(found) // 2
            merge = (unmerge / unmerge.sum(0)).T
            maps.append(((merge[:, :half], merge[:, half:]), (unmerge[:half], unmerge[half:])))
        (m1, u1), (m2, u2) = maps
        trunk = torch.relu(
            x @ (m1[0] @ first.one.weight + m1[1] @ second.one.weight).T
            + m1[0] @ first.one.bias
            + m1[1] @ second.one.bias
        )
        heads = [
            m.out(torch.relu(m.two(trunk @ u.T))) for m, u in zip((first, second), u1, strict=True)
        ]
        two = (m2[0] @ first.two.weight @ u1[0]) + (m2[1] @ second.two.weight @ u1[1])
        bias = m2[0] @ first.two.bias + m2[1] @ second.two.bias
        last = torch.relu(trunk @ two.T + bias)
        whole = (first.out(last @ u2[0].T) + second.out(last @ u2[1].T)) / 2
        options = {"alpha": 1.0, "beta": 1.0}
        partial = zip_it(spec, first, second, [x], "one", **options)
        zipped = zip_it(spec, first, second, [x], **options)
        # ReLU of the sum, not the sum behind it: the cut is in front of it.
        torch.testing.assert_close(zipped(x), whole, rtol=1e-4, atol=1e-4)
        for found, expected in zip(partial(x), heads, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("until", ["bn1", "blocks.3", "blocks"])
def test_both_heads_of_shuffled_networks_are_the_networks(spec, until):
    first = network(0)
    second = shuffled(spec, first)
    second.linear = nn.Linear(24, 7)  # another task
    zipped = zip_it(spec, first, second, [IMAGES], until)
    assert isinstance(zipped, TwoHeads)
    for found, model in zip(zipped(IMAGES), (first, second), strict=True):
        torch.testing.assert_close(found, model(IMAGES), rtol=1e-4, atol=1e-4)
    again = copy.deepcopy(zipped)
    torch.testing.assert_close(again(IMAGES)[1], second(IMAGES), rtol=1e-4, atol=1e-4)


def test_two_units_are_enough_for_a_cut():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(40, 5)
    spec = PermutationSpec.from_model(first, x)
    second = shuffled(spec, first)
    for found in zip_it(spec, first, second, [x], "0")(x):
        torch.testing.assert_close(found, first(x))


def test_networks_may_lack_what_the_other_has_behind_the_cut_only():
    def made(first, last, seed):
        torch.manual_seed(seed)
        layers = nn.Linear(5, 6, bias=first), nn.Tanh(), nn.Linear(6, 3, bias=last)
        return nn.Sequential(*layers)

    x = torch.randn(40, 5)
    first = made(True, True, 0)
    spec = PermutationSpec.from_model(first, x)
    second = made(True, False, 1)
    second[0].load_state_dict(first[0].state_dict())
    for found, model in zip(zip_it(spec, first, second, [x], "0")(x), (first, second), strict=True):
        torch.testing.assert_close(found, model(x))
    with pytest.raises(AlignmentError, match=r"'2.bias' is in one of the networks only"):
        zip_it(spec, first, second, [x])
    with pytest.raises(AlignmentError, match=r"'2.bias' is not in the other network"):
        TransportMatching().fuse(spec, first, second)
    for until in ("0", None):
        with pytest.raises(AlignmentError, match=r"'0.bias' is not in the other network"):
            zip_it(spec, first, made(False, True, 2), [x], until)


def test_the_trunk_is_there_once(spec):
    first, second = network(0), network(1)
    sizes = [
        sum(p.numel() for p in zip_it(spec, first, second, [IMAGES], until).parameters())
        for until in ("blocks.0", "blocks.5", "blocks.8")
    ]
    own = sum(p.numel() for p in first.parameters())
    head = sum(p.numel() for p in first.linear.parameters())
    assert sizes[2] == own + head
    assert sizes[2] < sizes[1] < sizes[0] < 2 * own


@pytest.mark.parametrize(
    ("until", "words"),
    [
        ("blocks.3.conv1", "goes past"),
        ("nowhere", "no module is called"),
        ("conv2", "9 modules end in"),
        ("linear", "no group of units"),
    ],
)
def test_a_cut_that_is_none_is_refused(spec, until, words):
    with pytest.raises(AlignmentError, match=words):
        zip_it(spec, network(0), network(1), [IMAGES], until)


def test_shares_are_checked(spec):
    with pytest.raises(AlignmentError, match="beta 2"):
        zip_it(spec, network(0), network(1), [IMAGES], beta=2)


class Halves(LightningModule):
    """Says how often it is right."""

    def __init__(self, classes):
        super().__init__()
        self.net = ResNet20(6)
        self.net.linear = nn.Linear(24, classes)

    def forward(self, x):
        return self.net(x)

    def test_step(self, batch, batch_idx):
        self.log("right", (self(batch[0]).argmax(1) == batch[1]).float().mean())


def test_a_trainer_tests_it_on_both_tasks(spec):
    del spec
    modules = [randomise(Halves(classes), classes).eval() for classes in (4, 9)]
    own = PermutationSpec.from_model(modules[0], IMAGES[:2])
    zipped = zip_it(own, *modules, [IMAGES], "net.blocks.5")
    for answer, expected in zip("ab", zipped(IMAGES), strict=True):
        labels = expected.argmax(1)
        labels[:12] = -1
        loader = DataLoader(TensorDataset(IMAGES, labels), batch_size=48)
        module = ZippedModule(copy.deepcopy(zipped), answer)
        assert isinstance(module, Halves)
        (found,) = quiet_trainer().test(module, loader, verbose=False)
        assert found["right"] == pytest.approx(0.75)
    with pytest.raises(ConfigError, match="answer"):
        ZippedModule(zipped, "c")


def test_recipes_zip_and_reset():
    context = made_context(norm=True)
    whole = Recipe("zip", ZipIt(), recalibrate="batchnorm")(context)
    assert type(whole.module) is type(context.module)
    partial = Recipe("part", PartialZipIt("net.2"), recalibrate="batchnorm")(context)
    (scores,) = quiet_trainer().test(partial.module, context.data, verbose=False)
    assert scores["test_acc"] > 0.5
    with pytest.raises(ConfigError, match="two networks, not 3"):
        Recipe("zip", ZipIt())(made_context(3))
    assert ZipIt(0.1, 0.2).alpha == 0.1


def test_complex_weights_are_averaged() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(5, 4, dtype=torch.complex64)
            self.one, self.out = nn.Linear(4, 7), nn.Linear(7, 3)

        def forward(self, x):
            return self.out(self.one(self.mix(x.to(torch.complex64)).abs()).relu())

    a, b = Complex().eval(), Complex().eval()
    x = torch.randn(30, 5)
    zipped = zip_it(PermutationSpec.from_model(a, x), a, b, [x])
    torch.testing.assert_close(zipped.mix.weight, (a.mix.weight + b.mix.weight) / 2)
    assert zipped.mix.weight.dtype == torch.complex64
