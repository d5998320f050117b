"""NP Merge of more than two by random pairs, as a recipe."""

import pytest
import torch
from strangers import quiet_trainer
from tiny_contexts import Learner, Points, trained

from lightning_merge import Context, MergeModule, NPMerge, NPMergePairs, Recipe, WeightMatching
from lightning_merge.measure.outcome import run_recipe
from lightning_merge.recipe.aggregates.pairwise_merges import drawn_pairs
from lightning_merge.recipe.aligning import align
from lightning_merge.recipe.build import build_recipe


def sgd(logits):
    return torch.optim.SGD(logits, lr=2.0)


def context_of(count, seed=0):
    return Context(
        Learner(norm=True),
        [trained(number, norm=True).state_dict() for number in range(count)],
        [f"n{number}" for number in range(count)],
        Points(testable=False),
        quiet_trainer,
        seed=seed,
        progress=False,
    )


@pytest.mark.parametrize("matching", [None, WeightMatching()], ids=["as they are", "aligned"])
def test_each_pair_is_an_np_merge_of_the_two_that_the_choice_names(matching):
    context = context_of(4, seed=3)
    aggregate = NPMergePairs("channel", max_epochs=1, optimizer=sgd, matching=matching)
    torch.manual_seed(7)
    made = aggregate(context.states, context)
    (choice,) = made.choices
    known = dict(zip(context.names, context.states, strict=True))
    torch.manual_seed(7)
    for first, second in choice.details["pairs"]:
        # By hand: the plain class on the two that are named, one after the other.
        module = MergeModule(
            context.build(known[first]),
            [known[first], known[second]],
            "channel",
            optimizer=sgd,
            matching=matching,
        )
        quiet_trainer(max_epochs=1, limit_val_batches=0).fit(module, datamodule=context.data)
        module.eval()
        known[f"({first} + {second})"] = module.state_dict()
    last = known[f"({first} + {second})"]
    for name, value in made.module.state_dict().items():
        torch.testing.assert_close(value, last[name], msg=name)
    assert len(choice.details["pairs"]) == 3
    assert made.labelled_examples == 96
    assert not isinstance(made.module, MergeModule)


def test_pairs_are_drawn_by_the_seed_and_use_every_ingredient_once():
    drawn = [drawn_pairs(list("abcde"), seed) for seed in range(6)]
    assert drawn[0] == drawn_pairs(list("abcde"), 0)
    assert len({str(pairs) for pairs in drawn}) > 1
    for pairs in drawn:
        assert len(pairs) == 4
        once = [name for pair in pairs for name in pair if len(name) == 1]
        assert sorted(once) == list("abcde")


def test_two_are_merged_as_np_merge_merges_them():
    context = context_of(2)
    pairs = Recipe("pairs", NPMergePairs(max_epochs=1))(context).module
    first, second = drawn_pairs(["0", "1"], context.seed)[0]
    turned = context.of([int(first), int(second)])
    expected = Recipe("joint", NPMerge(max_epochs=1))(turned).module
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(pairs.state_dict()[name], value)


def test_ingredients_are_those_that_the_recipe_aligned_and_the_choice_is_reported():
    context = context_of(3)
    recipe = build_recipe(
        {
            "name": "Pairs",
            "aggregate": {
                "class_path": "NPMergePairs",
                # So small a rate leaves every alpha at a half.
                "init_args": {
                    "max_epochs": 1,
                    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-12}},
                },
            },
            "align": "WeightMatching",
        }
    )
    context.data.testable = True
    outcome = run_recipe(recipe, context)
    states = align(WeightMatching(), context).states
    (one, two), (_, last) = drawn_pairs(["0", "1", "2"], context.seed)
    shares = {int(one): 0.25, int(two): 0.25, 3 - int(one) - int(two): 0.5}
    assert last.isdigit() or last.startswith("(")
    for name, _ in context.module.named_parameters():
        mean = sum(share * states[index][name] for index, share in shares.items())
        torch.testing.assert_close(outcome.module.state_dict()[name], mean, msg=name)
    assert "drawn by seed 0" in outcome.measurement.chosen
    assert not outcome.measurement.chose
    assert outcome.choices[0]["pairs"][0] == [f"n{one}", f"n{two}"]
