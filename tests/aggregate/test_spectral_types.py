"""What spectral merges take for a matrix, and of which type their merges are."""

import pytest
import torch

from lightning_merge.aggregate import iso_c, iso_cts, tsv_merge
from lightning_merge.aggregate.matrix_merges import is_matrix
from lightning_merge.state_dicts import entry_of


@pytest.mark.parametrize("merge", [tsv_merge, iso_c, iso_cts])
def test_complex_matrices_are_averaged_and_the_widest_type_counts(merge):
    torch.manual_seed(4)
    start = {"c": torch.zeros(4, 3, dtype=torch.complex64), "w": torch.zeros(4, 3).double()}
    vectors = [
        {"c": torch.randn(4, 3, dtype=torch.complex64), "w": torch.randn(4, 3, dtype=dtype)}
        for dtype in (torch.float16, torch.float64, torch.float32)
    ]
    merged = merge(start, vectors)
    torch.testing.assert_close(merged["c"], sum(vector["c"] for vector in vectors) / 3)
    wide = [{"w": vector["w"].double()} for vector in vectors]
    expected = merge({"w": start["w"]}, wide)["w"]
    for order in (vectors, vectors[::-1]):
        found = merge(start, order)["w"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert found.dtype == torch.float64
        assert not torch.equal(found.float().double(), found)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("fc.weight", (4, 3), True),
        ("patch_embed.proj.weight", (8, 3, 4, 4), True),
        ("depthwise.weight", (8, 1, 3, 3), True),
        ("fc.bias", (4,), False),
        ("row.weight", (1, 30), False),
        ("norm.running_mean", (4, 4), False),
        ("visual.positional_embedding", (50, 64), False),
        ("token_embedding.weight", (100, 64), False),
        ("embeddings.position_embedding.weight", (50, 64), False),
        ("attn.relative_position_bias_table", (49, 4), False),
        ("text_projection", (64, 32), False),
    ],
)
def test_which_tensors_are_matrices(name, shape, expected):
    assert is_matrix(name, entry_of(name, torch.zeros(shape))) is expected
