from torch import nn, randn

from lightning_merge import PermutationSpec


def test_a_spec_prints_its_groups_and_what_is_frozen():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    spec = PermutationSpec.from_model(network, randn(2, 4))
    spec.frozen.append("output: its order is the classes'")
    heading, *lines = str(spec).splitlines()
    assert heading.split() == ["group", "symmetry", "size", "members"]
    groups = [line.split() for line in lines[: -len(spec.frozen)]]
    assert [(one[1], one[2]) for one in groups] == [("permutation", "6"), ("permutation", "5")]
    assert groups[0][0] == spec.groups[0].name
    for tensor in ("0.weight[0]", "0.bias[0]", "2.weight[1]"):
        assert tensor in lines[0]
    assert groups[0][3] == "3:"
    assert lines[2:] == [f"frozen: {one}" for one in spec.frozen]
    assert lines[-1] == "frozen: output: its order is the classes'"
