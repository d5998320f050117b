"""WiSE-FT curves against networks that are interpolated and tested by hand."""

import math
from dataclasses import replace

import pytest
import torch
from strangers import quiet_trainer
from torch import nn

from lightning_merge import (
    Average,
    Context,
    DigitsDataModule,
    ImageClassifier,
    PermutationSpec,
    Recipe,
    WeightMatching,
    average,
)
from lightning_merge.errors import ConfigError
from lightning_merge.measure.sweep import sweep_of
from lightning_merge.plots.figure import Stored, figures


def linear():
    return ImageClassifier("linear_classifier", 10, 1, model_kwargs={"img_size": 8})


def states(count):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(linear().state_dict())
    return made


def test_curves_are_those_of_networks_interpolated_by_hand(tmp_path):
    data = DigitsDataModule()
    start, *ends = states(3)
    module = linear()
    names = ["a", "b"]
    context = Context(module, ends, names, data, quiet_trainer, progress=False, pretrained=start)
    sweep = sweep_of("wise_ft")
    value = {"points": 3, "corruptions": ["contrast", "gaussian_noise"]}
    sweep.check(value, 2)
    sweep.check_context(context)
    settings = sweep.settings(value, [Recipe("soup", Average())], [2])
    soup = average(ends)
    found = sweep.measure(context, settings, lambda name, size: soup)
    assert [one["name"] for one in found] == ["a", "soup"]
    for one, end in zip(found, (ends[0], soup), strict=True):
        assert one["coefficient"] == [0, 0.5, 1]
        for index, share in enumerate(one["coefficient"]):
            state = {k: (1 - share) * start[k] + share * v for k, v in end.items()}
            network = context.build(state).eval()
            for name in ("clean", "contrast", "gaussian_noise"):
                tested = data if name == "clean" else data.corrupted(name, 3)
                with torch.no_grad():
                    right = [
                        (network(x).argmax(1) == y).float() for x, y in tested.test_dataloader()
                    ]
                expected = float(torch.cat(right).mean())
                assert one["accuracy"][name][index] == pytest.approx(expected, abs=2e-3)
    (table,) = sweep.tables(found)
    assert [line[:2] for line in table[1:]] == [
        [name, share] for name in ("a", "soup") for share in ("0", "0.5", "1")
    ]
    drawn = figures.get("wise_ft").value.draw(Stored([{"wise_ft": found}]))
    left, right = drawn["wise_ft"].axes
    assert len(left.lines) == 4
    assert list(left.lines[0].get_ydata()) == pytest.approx(found[0]["accuracy"]["clean"])
    assert figures.get("wise_ft").value.draw(Stored([{}])) == {}
    with pytest.raises(ConfigError, match="fine-tuned from"):
        sweep.measure(replace(context, pretrained=None), settings, lambda name, size: soup)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"point": 3}, "'point' is unknown"),
        ({"points": 1}, "2 points"),
        ({"corruptions": []}, "a corruption"),
        ({"corruptions": ["fog_of_war"]}, "fog_of_war"),
    ],
)
def test_settings_that_cannot_be_are_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        sweep_of("wise_ft").check(value, 2)


def test_accuracies_that_are_no_numbers_leave_a_gap():
    accuracy = {"clean": [0.5, None], "contrast": [None, 0.25], "fog": [0.5, 0.75]}
    found = [{"name": "a", "coefficient": [0.0, 1.0], "accuracy": accuracy}]
    assert sweep_of("wise_ft").tables(found)[0][1:] == [
        ["a", "0", "0.5000", "-"],
        ["a", "1", "-", "0.5000"],
    ]
    left, _ = figures.get("wise_ft").value.draw(Stored([{"wise_ft": found}]))["wise_ft"].axes
    assert [one.get_ydata().tolist() for one in left.lines] == [
        pytest.approx([0.5, math.nan], nan_ok=True),
        pytest.approx([math.nan, 0.5], nan_ok=True),
    ]


def test_repaired_networks_have_the_statistics_of_the_aligned_ingredients():
    """Of two copies with their units shuffled, REPAIR changes nothing once they are aligned."""
    torch.manual_seed(0)
    module = linear()
    module.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    first = module.state_dict()
    spec = PermutationSpec.from_model(module, torch.randn(4, 1, 8, 8))
    second = spec.apply(first, spec.random(torch.Generator().manual_seed(1)))
    data = DigitsDataModule()
    context = Context(
        module, [first, second], ["a", "b"], data, quiet_trainer, progress=False, pretrained=first
    )
    sweep = sweep_of("wise_ft")
    recipe = Recipe("soup", Average(), WeightMatching(), "repair")
    value = {"points": 2, "corruptions": ["contrast"]}
    own, soup = sweep.measure(
        context, sweep.settings(value, [recipe], [2]), lambda name, size: first
    )
    assert soup["accuracy"] == own["accuracy"]


class Unasked(WeightMatching):
    def aligned(self, *args, **kwargs):
        pytest.fail("nothing is aligned for a path that needs no ingredients")


def test_nothing_is_aligned_where_no_recalibration_reads_the_ingredients():
    start, *ends = states(3)
    context = Context(
        linear(), ends, ["a", "b"], DigitsDataModule(), quiet_trainer, False, pretrained=start
    )
    sweep = sweep_of("wise_ft")
    settings = sweep.settings({"points": 2}, [Recipe("soup", Average(), Unasked())], [2])
    assert len(sweep.measure(context, settings, lambda name, size: ends[0])) == 2
