"""What "Rethinking Weight-Averaged Model-merging" says of averages."""

import pytest
import torch
from torch import nn

from lightning_merge.aggregate import average


def layers(rectified, seed):
    torch.manual_seed(seed)
    middle = [nn.ReLU()] if rectified else []
    return nn.Sequential(nn.Linear(6, 5), *middle).double()


@pytest.mark.parametrize("rectified", [False, True])
def test_averaging_weights_is_averaging_features_only_where_all_is_linear(rectified):
    # Eq. 3 and 5 are equal; Eq. 6 and 8 are not, and differ where signs do.
    a, b = (layers(rectified, seed) for seed in range(2))
    merged = layers(rectified, 2)
    merged.load_state_dict(average([a.state_dict(), b.state_dict()]))
    inputs = torch.randn(50, 6, dtype=torch.float64)
    with torch.no_grad():
        of_weights, of_features = merged(inputs), (a(inputs) + b(inputs)) / 2
        differ = (of_weights - of_features).abs() > 1e-12
        opposite = a[0](inputs) * b[0](inputs) < 0
    assert torch.equal(differ, opposite if rectified else torch.zeros_like(differ))
    # The rectifier is convex: features keep at least what weights keep.
    assert bool((of_features >= of_weights - 1e-12).all())


@pytest.mark.parametrize("order", ["fro", "nuc", 2, 1])
def test_the_mean_is_no_larger_than_the_larger(order):
    # Sec. 5.1, Eq. 10 and 11.
    for seed in range(1, 20):
        generator = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        norms = [float(torch.linalg.matrix_norm(w, order)) for w in (a, b * seed)]
        mean = average([{"w": a}, {"w": b * seed}])["w"]
        norm = float(torch.linalg.matrix_norm(mean, order))
        assert norm < sum(norms) / 2 <= max(norms)
        parallel = average([{"w": a}, {"w": 3 * a}])["w"]
        assert float(torch.linalg.matrix_norm(parallel, order)) == pytest.approx(2 * norms[0])


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0, -0.5])
def test_the_variance_of_the_mean(correlation):
    # Sec. 5.2, Eq. 13 holds for weights that are uncorrelated; Eq. 14's bound for any.
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(400_000, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = 2 * x + 1, 3 * (correlation * x + (1 - correlation**2) ** 0.5 * y)
    mean = average([{"w": a}, {"w": b}])["w"]
    assert float(mean.mean()) == pytest.approx(float(a.mean() + b.mean()) / 2)
    variance = float(mean.var())
    assert variance == pytest.approx((4 + 9 + 2 * correlation * 6) / 4, rel=0.02)
    assert (variance == pytest.approx((4 + 9) / 4, rel=0.02)) == (correlation == 0)
    assert variance <= max(float(a.var()), float(b.var()))
