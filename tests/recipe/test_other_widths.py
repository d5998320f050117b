"""Ingredients of different width: the narrower ones compute what they did."""

import json

import pytest
import torch
from made_checkpoints import write_ingredient
from strangers import quiet_trainer, randomise

from lightning_merge import (
    Average,
    DigitsDataModule,
    ImageClassifier,
    PermutationSpec,
    Recipe,
    WeightMatching,
    merge,
)
from lightning_merge.align import widened
from lightning_merge.cli import main
from lightning_merge.errors import AlignmentError, ArchitectureMismatchError, ConfigError
from lightning_merge.recipe.opening import open_context

ALIGNED = Recipe("Aligned", Average(), WeightMatching())
X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(path):
    return ImageClassifier.load_from_checkpoint(path, map_location="cpu").eval()


@pytest.fixture
def files(tmp_path):
    return [
        write_ingredient(tmp_path / f"{name}.ckpt", seed, model_kwargs={"width": width})
        for seed, (name, width) in enumerate({"one": 1, "two": 2, "again": 1}.items())
    ]


def test_each_computes_what_it_did(files):
    context = open_context(files, DigitsDataModule(), quiet_trainer, widen=True, progress=False)
    for path, state in zip(files, context.states, strict=True):
        made = context.build(state).eval()
        torch.testing.assert_close(made(X), network(path)(X), rtol=1e-4, atol=1e-5)
    wide = network(files[1]).state_dict()
    assert all(torch.equal(context.states[1][name], value) for name, value in wide.items())


def test_files_are_known_by_what_they_hold(files):
    alone = open_context(files[::2], DigitsDataModule(), quiet_trainer, progress=False)
    beside = open_context(files, DigitsDataModule(), quiet_trainer, widen=True, progress=False)
    assert beside.digests[::2] == alone.digests


def test_a_narrow_one_and_its_reordered_wide_copy_are_one(files):
    narrow, wide = network(files[0]), randomise(network(files[1]), 5)
    state = widened(narrow, wide, X)
    spec = PermutationSpec.from_model(wide, X)
    wide.load_state_dict(spec.apply(state, spec.random(torch.Generator().manual_seed(1))))
    result = merge([narrow, wide], ALIGNED, DigitsDataModule(), widen=True, progress=False)
    merged = result.merged["Aligned"].eval()
    torch.testing.assert_close(merged(X), narrow.eval()(X), rtol=1e-4, atol=1e-5)


def test_the_command_writes_a_network_of_the_widest(files, tmp_path):
    output = tmp_path / "merged"
    given = f"[{files[0]}, {files[1]}]"
    words = f"--widen true --recipe.name Mean --recipe.aggregate Average --output {output}"
    data = "--data DigitsDataModule --trainer.accelerator cpu"
    main(["merge", "--checkpoints", given, *words.split(), *data.split()])
    merged = network(output / "merged.ckpt")
    shapes = {name: value.shape for name, value in network(files[1]).state_dict().items()}
    assert {name: value.shape for name, value in merged.state_dict().items()} == shapes
    listed = json.loads((output / "result.json").read_text())["ingredients"]
    assert list(listed) == [str(path) for path in files[:2]]


def test_another_family_is_refused(files, tmp_path):
    other = write_ingredient(tmp_path / "other.ckpt", 3, model="test_resnet")
    with pytest.raises(AlignmentError, match=r" beside (one|other): "):
        merge([files[0], other], ALIGNED, DigitsDataModule(), widen=True, progress=False)


def test_one_model_for_all_is_refused(files):
    with pytest.raises(ConfigError, match="leave --model out"):
        merge(
            files[:2],
            ALIGNED,
            DigitsDataModule(),
            model=network(files[1]),
            widen=True,
            progress=False,
        )


def test_heads_are_not_joined_at_other_widths(files):
    with pytest.raises(ConfigError, match="--heads join wants networks of one width"):
        merge(files[:2], ALIGNED, DigitsDataModule(), heads="join", widen=True, progress=False)


def test_without_being_asked_for_widths_may_not_differ(files):
    with pytest.raises(ArchitectureMismatchError, match="of different widths with --widen true"):
        merge(files[:2], ALIGNED, DigitsDataModule(), progress=False)
