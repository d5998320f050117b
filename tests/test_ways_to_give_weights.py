"""A network, its state dict, that of NumPy arrays, a file: all give what the state dict does."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import save_file
from torch import nn

from lightning_merge import (
    MergeModule,
    PermutationSpec,
    WeightMatching,
    average,
    cart,
    consensus,
    greedy_soup,
    interpolate,
    iso_c,
    iso_cts,
    karcher_mean,
    slerp,
    svc,
    tall_masks,
    task_arithmetic,
    task_vector,
    ties,
    tsv_merge,
)
from lightning_merge.align import agreement


class Classifier(LightningModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        return self(batch[0]).sum()


NETWORKS = [Classifier(seed) for seed in range(3)]
STATES = [one.state_dict() for one in NETWORKS]


def arrays(state):
    found = {name: value.numpy().copy() for name, value in state.items()}
    # Read-only, in another byte order, and not contiguous, as arrays come from files.
    found["net.0.weight"].flags.writeable = False
    found["net.2.weight"] = found["net.2.weight"].astype(">f4")
    found["net.0.bias"] = np.repeat(found["net.0.bias"], 2)[::2]
    return found


@pytest.fixture
def ways(tmp_path):
    paths = [tmp_path / "0.ckpt", str(tmp_path / "1.safetensors"), tmp_path / "2.pt"]
    torch.save({"state_dict": STATES[0]}, paths[0])
    save_file(STATES[1], paths[1])
    torch.save(STATES[2], paths[2])
    return {
        "network": NETWORKS,
        "parameters": [dict(one.named_parameters()) for one in NETWORKS],
        "arrays": [arrays(one) for one in STATES],
        "file": paths,
    }


SPEC = PermutationSpec.from_model(NETWORKS[0], torch.zeros(2, 4), symmetries="all")
ORDER = SPEC.random(torch.Generator().manual_seed(0))
MAPS = SPEC.random_maps(torch.Generator().manual_seed(0))
VECTORS = [task_vector(one, STATES[0]) for one in STATES[1:]]


def merge_module(given):
    return MergeModule(Classifier(9), given).state_dict()


FUNCTIONS = {
    "average": average,
    "interpolate": lambda given: interpolate(given[0], given[1], 0.3),
    "slerp": lambda given: slerp(given[0], given[1], np.array(0.3)),
    "karcher_mean": karcher_mean,
    "greedy_soup": lambda given: greedy_soup(given, lambda s: float(s["net.0.bias"].sum()))[0],
    "task_vector": lambda given: task_vector(given[1], given[0]),
    "task_arithmetic": lambda given: task_arithmetic(given[0], VECTORS, 0.4),
    "vectors": lambda given: task_arithmetic(STATES[0], given[1:], 0.4),
    "ties": lambda given: ties(given[0], VECTORS, 1.0, 0.4),
    "tsv_merge": lambda given: tsv_merge(given[0], VECTORS),
    "iso_c": lambda given: iso_c(given[0], VECTORS),
    "iso_cts": lambda given: iso_cts(given[0], VECTORS),
    "cart": cart,
    "svc": lambda given: svc(given[0], VECTORS, given[1]),
    "consensus": lambda given: consensus(given[0], VECTORS, 0.4),
    "tall_masks": lambda given: tall_masks(given[0], VECTORS)[1],
    "apply": lambda given: SPEC.apply(given[0], ORDER),
    "transform": lambda given: SPEC.transform(SPEC.canonical(given[0]), MAPS),
    "match": lambda given: WeightMatching().match(SPEC, given[0], given[1]),
    "align": lambda given: WeightMatching().align(SPEC, given[0], given[1], ()),
    "agreement": lambda given: {"all": torch.tensor(agreement(SPEC, given))},
    "MergeModule": merge_module,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("way", ["network", "parameters", "arrays", "file"])
def test_each_way_gives_what_state_dicts_give(name, way, ways):
    expected, found = FUNCTIONS[name](STATES), FUNCTIONS[name](ways[way])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key
        assert not found[key].requires_grad


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist])
def test_maps_as_arrays_and_lists(convert):
    for call, maps in ((SPEC.apply, ORDER), (SPEC.transform, MAPS)):
        state = SPEC.canonical(STATES[0])
        found = call(state, {name: convert(one) for name, one in maps.items()})
        expected = call(state, maps)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_example_inputs_as_an_array():
    spec = PermutationSpec.from_model(NETWORKS[0], np.zeros((2, 4), np.float32))
    assert [group.size for group in spec.groups] == [6]
