"""Names in tables and figures: what distinguishes the files."""

import pytest

from lightning_merge.short_names import short_names


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.ckpt", "b.ckpt"], ["a", "b"]),
        (["network 1", "network 2"], ["network 1", "network 2"]),
        (
            ["logs/version_0/checkpoints/last.ckpt", "logs/version_1/checkpoints/last.ckpt"],
            ["version_0", "version_1"],
        ),
        (
            ["logs/version_0/ckpt/epoch=9.ckpt", "logs/version_1/ckpt/epoch=8.ckpt"],
            ["version_0/…/epoch=9", "version_1/…/epoch=8"],
        ),
        (["one/x.pt", "two/y/x.pt"], ["one", "two/y"]),
        (["a/x.pt", "a/x.ckpt"], ["x.pt", "x.ckpt"]),
        (["a/b.ckpt"], ["b"]),
        (["a/x.ckpt", "a/x.ckpt"], ["x", "x"]),
        (
            [
                "resnet20-digits-seed=0-val_acc=0.97.ckpt",
                "resnet20-digits-seed=1-val_acc=0.97.ckpt",
            ],
            ["seed=0", "seed=1"],
        ),
        (
            [f"runs/{n}/version_0/checkpoints/resnet20-digits-seed{n}-last.ckpt" for n in "012"],
            ["seed0", "seed1", "seed2"],
        ),
        ([], []),
    ],
)
def test_what_all_share_is_left_out(names, short):
    assert short_names(names) == short
