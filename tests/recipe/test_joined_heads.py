"""Networks of disjoint classes become one network of all classes, with all their heads."""

import copy

import pytest
import torch
from lightning.pytorch import LightningDataModule
from strangers import Stranger, quiet_trainer, randomise
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge import (
    ActivationMatching,
    Average,
    FeaturesEnsemble,
    ImageClassifier,
    LogitsEnsemble,
    NPMerge,
    NPMergePairs,
    PartialZipIt,
    PermutationSpec,
    Recipe,
    TaskArithmetic,
    WeightMatching,
    ZipIt,
    average,
    compare,
    merge,
)
from lightning_merge.aggregate.heads import join_heads, pad_heads
from lightning_merge.errors import ArchitectureMismatchError, ConfigError
from lightning_merge.measure.sweeps.weight_scaling import measure_scaling
from lightning_merge.recipe.aligning import align
from lightning_merge.recipe.opening import open_context

HEAD = "network.head.fc"


class AllClasses(LightningDataModule):
    """Images of five classes."""

    def _loader(self, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(40, 1, 8, 8, generator=generator)
        return DataLoader(TensorDataset(x, torch.arange(40) % 5), batch_size=20)

    def train_dataloader(self):
        return self._loader(1)

    def val_dataloader(self):
        return self._loader(2)

    def test_dataloader(self):
        return self._loader(3)


def classifier(classes, seed):
    model = {"model": "resnet20_cifar", "in_chans": 1}
    return randomise(ImageClassifier(num_classes=classes, **model), seed).eval()


def with_body_of(network, other):
    state = network.state_dict()
    body = {k: v for k, v in other.state_dict().items() if not k.startswith(HEAD)}
    network.load_state_dict({**state, **body})
    return network


def shuffled(network):
    """The same function with its hidden units in another order."""
    spec = PermutationSpec.from_model(network, torch.randn(2, 1, 8, 8))
    draw = torch.Generator().manual_seed(3)
    moved = copy.deepcopy(network)
    moved.load_state_dict(spec.apply(network.state_dict(), spec.random(draw)))
    return moved


@pytest.fixture(scope="module")
def pair():
    """Two networks of one body: of three classes, and of two others."""
    first = classifier(3, 0)
    return first, with_body_of(classifier(2, 1), first)


def saved(network, path):
    torch.save(
        {"state_dict": network.state_dict(), "hyper_parameters": dict(network.hparams)}, path
    )
    return str(path)


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def side_by_side(networks, images):
    with torch.no_grad():
        return torch.cat([network(images) for network in networks], dim=1)


def test_of_one_body_the_joined_network_gives_both_networks_logits_exactly(pair, images, tmp_path):
    paths = [saved(one, tmp_path / f"{index}.ckpt") for index, one in enumerate(pair)]
    result = merge(
        paths,
        Recipe("joined", Average()),
        AllClasses(),
        heads="join",
        output=tmp_path / "out",
        progress=False,
    )
    # What is written is a network of all classes, which its own class loads.
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "out" / "merged.ckpt").eval()
    assert loaded.hparams["num_classes"] == 5
    for found in (result.outcome.module.eval(), loaded):
        for name, value in found.state_dict().items():
            own = [network.state_dict()[name] for network in pair]
            assert torch.equal(value, torch.cat(own) if name.startswith(HEAD) else own[0])
        # Products of other widths are rounded in another order.
        with torch.no_grad():
            torch.testing.assert_close(found(images), side_by_side(pair, images), rtol=1e-5, atol=0)


@pytest.mark.parametrize("matching", [ActivationMatching(), WeightMatching()])
def test_the_second_heads_rows_move_with_the_units(pair, images, matching):
    networks = [pair[0], shuffled(pair[1])]
    context = open_context(networks, AllClasses(), quiet_trainer, heads="join", progress=False)
    found = Recipe("joined", Average(), matching)(context).module.eval()
    with torch.no_grad():
        torch.testing.assert_close(found(images), side_by_side(pair, images), rtol=1e-4, atol=1e-4)
        unaligned = Recipe("direct", Average())(context).module.eval()
        assert not torch.allclose(unaligned(images), side_by_side(pair, images), atol=1e-2)


def test_a_zip_has_both_heads_in_the_order_of_its_units(pair, images):
    networks = [pair[0], shuffled(pair[1])]
    context = open_context(networks, AllClasses(), quiet_trainer, heads="join", progress=False)
    expected = side_by_side(networks, images)
    for aggregate, share in ((ZipIt(), 1.0), (PartialZipIt("layer2"), 0.5)):
        found = Recipe("zipped", aggregate)(context).module.eval()
        with torch.no_grad():
            torch.testing.assert_close(found(images), share * expected, rtol=1e-4, atol=1e-4)


def test_a_zip_under_the_first_ones_head_reads_its_units_with_it(pair, images):
    networks = [pair[0], shuffled(pair[1])]
    context = open_context(networks, AllClasses(), quiet_trainer, heads="first", progress=False)
    found = Recipe("zipped", ZipIt())(context).module.eval()
    with torch.no_grad():
        torch.testing.assert_close(found(images), pair[0](images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"the first one's head cannot read: use ZipIt"):
        Recipe("partial", PartialZipIt("layer2"))(context)


@pytest.mark.parametrize("heads", ["first", "join"])
def test_heads_of_all_are_not_aligned_pair_by_pair(pair, heads):
    context = open_context(list(pair), AllClasses(), quiet_trainer, heads=heads, progress=False)
    recipe = Recipe("pairs", NPMergePairs(matching=WeightMatching()))
    with pytest.raises(ConfigError, match=r"is the same in all networks, and `matching` would"):
        recipe(context)


def test_three_networks_of_other_bodies_have_the_mean_body_under_all_heads(images):
    networks = [classifier(classes, seed) for seed, classes in enumerate((2, 2, 3))]
    context = open_context(networks, AllClasses(), quiet_trainer, heads="join", progress=False)
    assert context.heads == [f"{HEAD}.weight", f"{HEAD}.bias"]
    states = align(WeightMatching(), context).states
    state = Recipe("joined", Average(), WeightMatching())(context).module.state_dict()
    mean = average(states)
    for name, value in state.items():
        if name.startswith(HEAD):
            rows = [states[0][name][:2], states[1][name][2:4], states[2][name][4:7]]
            assert torch.equal(value, torch.cat(rows))
        else:
            assert torch.equal(value, mean[name])


def test_an_ensemble_lets_each_member_answer_for_its_own_classes(images):
    networks = [classifier(3, 0), classifier(2, 1)]
    context = open_context(networks, AllClasses(), quiet_trainer, heads="join", progress=False)
    found = Recipe("E", LogitsEnsemble())(context).module.eval()
    with torch.no_grad():
        torch.testing.assert_close(found(images), side_by_side(networks, images) / 2)


def test_task_vectors_are_of_bodies(tmp_path):
    networks = [classifier(3, 0), classifier(2, 1)]
    start = saved(classifier(7, 2), tmp_path / "start.ckpt")
    context = open_context(networks, AllClasses(), quiet_trainer, heads="join", progress=False)
    found = Recipe("T", TaskArithmetic(start, scale=0.5))(context).module.state_dict()
    expected = average(context.states)
    for name, value in found.items():
        if name.startswith(HEAD):
            rows = [network.state_dict()[name] for network in networks]
            assert torch.equal(value, torch.cat(rows))
        elif value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_compare_takes_networks_that_learn_and_a_model_of_ones_own(pair, images):
    class Joined(Stranger):
        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    result = compare(
        list(pair),
        [Recipe("mean", Average()), Recipe("NP", NPMerge(max_epochs=1))],
        AllClasses(),
        heads="join",
        progress=False,
    )
    with torch.no_grad():
        for name in ("mean", "NP"):
            found = result.merged[name].eval()
            torch.testing.assert_close(
                found.network.head.fc.weight,
                torch.cat([one.network.head.fc.weight for one in pair]),
            )
    own = [randomise(Stranger(classes=classes), classes).eval() for classes in (4, 3)]
    states = [network.state_dict() for network in own]
    x = torch.randn(4, 3, 8, 8)
    padded, heads = pad_heads(states, ["a", "b"], Stranger(classes=7).state_dict())
    for network, joined in zip(own, join_heads(padded, heads), strict=True):
        whole = Joined(classes=7).eval()
        whole.load_state_dict(joined)
        with torch.no_grad():
            part = slice(0, 4) if network is own[0] else slice(4, 7)
            torch.testing.assert_close(whole(x)[:, part], network(x))


def test_what_cannot_be_joined_is_refused_in_a_line(pair):
    states = [one.state_dict() for one in pair]
    opened = {"data": AllClasses(), "trainer": quiet_trainer, "heads": "join"}
    with pytest.raises(ConfigError, match="does not say how many"):
        open_context(states, **opened)
    with pytest.raises(ConfigError, match="num_classes to their sum"):
        open_context(states, **opened, model=pair[0])
    narrow = randomise(
        ImageClassifier("resnet20_cifar", num_classes=2, in_chans=1, model_kwargs={"width": 2}),
        0,
    )
    with pytest.raises(ArchitectureMismatchError, match="differ in classes alone"):
        open_context([pair[0], narrow], **opened)


class LastClass(AllClasses):
    """Test images are all of the last class."""

    def test_dataloader(self):
        x, y = super().test_dataloader().dataset.tensors
        return DataLoader(TensorDataset(x, torch.full_like(y, 4)), batch_size=20)


def test_a_multiplied_ensemble_of_features_has_the_joined_head_of_its_recipe():
    networks = [classifier(3, 0), classifier(2, 1)]
    with torch.no_grad():
        # The second network's head, which is not the first one's, has the last class.
        networks[1].get_submodule(HEAD).bias[1] = 1e6
    context = open_context(networks, LastClass(), quiet_trainer, heads="join", progress=False)
    recipe = Recipe("features", FeaturesEnsemble("first"))
    x, y = context.data.test_dataloader().dataset.tensors
    assert torch.equal(recipe(context).module.eval()(x).argmax(1), y)
    _, found = measure_scaling(context, [recipe], [1.0], [2], lambda name, size: {})
    assert found.accuracy == [1.0]
