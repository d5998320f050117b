import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_merge.aggregate import (
    cosine_similarity_matrix,
    dpp_kernel,
    exact_map,
    greedy_order,
    relative_gain_quality,
    sample_kdpp,
    select_dpp,
)
from lightning_merge.errors import ConfigError


def random_kernel(seed, n, rank=None):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, rank or n + 2, generator=generator, dtype=torch.float64)
    return features @ features.T / features.shape[1]


def determinant(kernel, subset):
    subset = list(subset)
    return float(torch.linalg.det(kernel[subset][:, subset]))


def best_by_enumeration(kernel, size):
    return max(
        combinations(range(len(kernel)), size), key=lambda subset: determinant(kernel, subset)
    )


def greedy_by_determinants(kernel, size):
    chosen = []
    for _ in range(size):
        rest = [i for i in range(len(kernel)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: determinant(kernel, [*chosen, i])))
    return chosen


@pytest.mark.parametrize("n", range(1, 11))
def test_cholesky_updates_give_the_greedy_order_of_the_determinants(n):
    for seed in range(5):
        kernel = random_kernel(seed, n)
        assert greedy_order(kernel) == greedy_by_determinants(kernel, n)


@pytest.mark.parametrize("n", range(2, 11))
def test_exact_map_is_the_best_of_all_and_greedy_is_within_its_bound(n):
    for seed in range(3):
        kernel = random_kernel(seed, n)
        order = greedy_order(kernel)
        for size in range(1, n + 1):
            best = exact_map(kernel, size)
            assert tuple(best) == best_by_enumeration(kernel, size)
            greedy, optimum = determinant(kernel, order[:size]), determinant(kernel, best)
            # Civril and Magdon-Ismail 2009: greedy volume is within a factor of size!
            assert optimum / math.factorial(size) ** 2 <= greedy <= optimum * (1 + 1e-9)
            if size in (1, n):
                assert sorted(order[:size]) == best


def test_greedy_is_optimal_where_items_are_independent():
    values = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.5])
    kernel = torch.diag(values)
    assert greedy_order(kernel) == [1, 3, 4, 0, 2]
    for size in range(1, 6):
        assert sorted(greedy_order(kernel)[:size]) == exact_map(kernel, size)


def test_greedy_can_miss_the_optimum():
    # Item 0 is the largest, but lies between 1 and 2, which are orthogonal.
    features = torch.tensor([[0.75, 0.75], [1.0, 0.0], [0.0, 1.0]])
    kernel = features @ features.T
    assert greedy_order(kernel)[0] == 0
    assert exact_map(kernel, 2) == [1, 2]


def test_copies_and_items_without_quality_are_not_usable():
    features = torch.tensor([[1.0, 0, 0], [0.9, 0, 0], [0, 0.5, 0], [0, 0, 0], [0.5, 0.5, 0]])
    assert greedy_order(features @ features.T) == [0, 2]
    with pytest.raises(ConfigError, match="3 models of 2"):
        exact_map(features @ features.T, 3)
    with pytest.raises(ConfigError, match="3 models of 2"):
        sample_kdpp(features @ features.T, 3)


@pytest.mark.parametrize(("n", "size", "rank"), [(5, 2, None), (5, 3, None), (6, 3, 4)])
def test_kdpp_frequencies_against_exact_probabilities(n, size, rank):
    kernel, draws = random_kernel(7, n, rank), 1500
    generator = torch.Generator().manual_seed(0)
    counts = Counter(tuple(sample_kdpp(kernel, size, generator)) for _ in range(draws))
    subsets = list(combinations(range(n), size))
    weights = [max(determinant(kernel, subset), 0.0) for subset in subsets]
    assert set(counts) <= {
        subset for subset, weight in zip(subsets, weights, strict=True) if weight
    }
    chi_square = 0.0
    for subset, weight in zip(subsets, weights, strict=True):
        expected = draws * weight / sum(weights)
        if expected > 1e-6:
            chi_square += (counts[subset] - expected) ** 2 / expected
    degrees = len(subsets) - 1
    # Five standard deviations above the mean of the chi-square distribution
    assert chi_square <= degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("quality", [[1, 1e-6, 2e-6, 3e-6], [1e30, 1e-30, 2e-30, 1e-30]])
@pytest.mark.parametrize("size", [2, 3])
def test_kdpp_frequencies_of_qualities_that_lie_far_apart(quality, size):
    q, features = torch.tensor(quality).double(), random_kernel(3, 4)
    kernel, draws = q[:, None] * features * q[None, :], 300
    generator = torch.Generator().manual_seed(0)
    counts = Counter(tuple(sample_kdpp(kernel, size, generator)) for _ in range(draws))
    # A set's determinant is its similarities' times the squares of its qualities.
    weights = {
        subset: determinant(features, subset)
        * math.prod(quality[i] / quality[1] for i in subset) ** 2
        for subset in combinations(range(4), size)
    }
    for subset, weight in weights.items():
        share = weight / sum(weights.values())
        deviation = math.sqrt(share * (1 - share) / draws)
        assert abs(counts[subset] / draws - share) <= 5 * deviation + 1e-9
    # The best by far, whose qualities' product underflows, is there in all.
    assert all(0 in subset for subset in counts)


def test_kdpp_by_seed_and_at_any_scale():
    kernel = random_kernel(1, 30)

    def draw(matrix, seed):
        return sample_kdpp(matrix, 12, torch.Generator().manual_seed(seed))

    assert draw(kernel, 0) == draw(kernel, 0)
    assert draw(kernel, 0) == draw(kernel * 1e-12, 0)
    drawn = [tuple(draw(kernel, seed)) for seed in range(5)]
    assert len(set(drawn)) == 5
    assert all(len(set(indices)) == 12 for indices in drawn)


def test_kernel_by_hand():
    S = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.0]])
    kernel = dpp_kernel([3.0, 4.0, -7.0], S)
    expected = torch.tensor([[0.36, 0.24, 0.0], [0.24, 0.64, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(kernel, expected.double())
    assert torch.equal(kernel, kernel.T)


def test_what_rounding_does_to_cosines_is_accepted():
    # Two copies, whose cosines came out a little above 1, and a model unlike both.
    similarity = torch.tensor([[1, 1 + 2e-7, 0], [1 + 1e-7, 1, 0], [0, 0, 1]]).double()
    kernel = dpp_kernel([2, 2, 1], similarity)
    assert torch.equal(kernel, kernel.T)
    expected = torch.tensor([[4, 4, 0], [4, 4, 0], [0, 0, 1]]).double() / 9
    torch.testing.assert_close(kernel, expected, rtol=1e-6, atol=0)
    assert greedy_order(kernel) == [0, 2]


def test_no_set_beats_the_empty_one():
    S = cosine_similarity_matrix(list(torch.randn(5, 8, 3)))
    kernel = dpp_kernel([1.0, 2.0, 0.5, 3.0, 1.0], S)
    for size in range(1, 6):
        assert determinant(kernel, exact_map(kernel, size)) < 1


def test_selection_of_models_whose_answer_is_known():
    # 0 and 1 are good and almost the same; 2 is fair and different; 3 is worse than before.
    S = torch.tensor(
        [[1.0, 0.98, 0.1, 0.0], [0.98, 1.0, 0.1, 0.0], [0.1, 0.1, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    )
    quality = relative_gain_quality([0.9, 0.88, 0.7, 0.4], 0.5)
    torch.testing.assert_close(quality, torch.tensor([0.8, 0.76, 0.4, -0.2]).double())
    assert select_dpp(quality, S, size=2) == [0, 2]
    assert select_dpp(quality, S) == [0, 2, 1]
    with pytest.raises(ConfigError, match="4 models of 3"):
        select_dpp(quality, S, size=4)
    with pytest.raises(ConfigError, match="0 models"):
        select_dpp(quality, S, size=0)


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=8),
    st.integers(0, 1000),
    st.floats(0.01, 100),
)
@settings(max_examples=60, deadline=None)
def test_the_order_has_prefixes_only_usable_items_and_no_scale(quality, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(len(quality), 20, 6, generator=generator)
    S = cosine_similarity_matrix(list(points))
    if not any(q > 0 for q in quality):
        with pytest.raises(ConfigError, match="no model is better"):
            select_dpp(quality, S)
        return
    quality = [0.0 if abs(q) < 1e-3 else q for q in quality] + [0.5]
    S = cosine_similarity_matrix([*points, torch.randn(20, 6, generator=generator)])
    order = select_dpp(quality, S)
    assert sorted(order) == [i for i, q in enumerate(quality) if q > 0]
    assert all(select_dpp(quality, S, size) == order[:size] for size in range(1, len(order) + 1))
    assert select_dpp([q * scale for q in quality], S) == order


def test_cosine_similarity_against_torch():
    generator = torch.Generator().manual_seed(0)
    representations = [torch.randn(2500, 7, generator=generator) + 0.5 for _ in range(4)]
    S = cosine_similarity_matrix(representations)
    for i in range(4):
        for j in range(4):
            expected = torch.cosine_similarity(representations[i], representations[j]).mean()
            torch.testing.assert_close(S[i, j], expected.double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(S, S.T)
    assert float(torch.linalg.eigvalsh(S)[0]) > 0
    torch.testing.assert_close(S.diagonal(), torch.ones(4).double())


def test_cosine_similarity_of_known_models():
    x = torch.randn(10, 4)
    S = cosine_similarity_matrix([x, 3 * x, -x, torch.zeros(10, 4)])
    expected = torch.tensor([[1.0, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(S, expected.double())


def test_quality_with_a_base_for_each_model():
    found = relative_gain_quality([0.6, 0.9], [0.5, 0.6])
    torch.testing.assert_close(found, torch.tensor([0.2, 0.5]).double())


def test_what_is_refused():
    with pytest.raises(ConfigError, match="pre-trained accuracy of 0"):
        relative_gain_quality([0.5], 0.0)
    with pytest.raises(ConfigError, match="2 pre-trained accuracies for 1"):
        relative_gain_quality([0.5], [0.1, 0.2])
    with pytest.raises(ConfigError, match="one shape"):
        cosine_similarity_matrix([torch.ones(3, 2), torch.ones(3, 4)])
    with pytest.raises(ConfigError, match="none"):
        cosine_similarity_matrix([])
    with pytest.raises(ConfigError, match="not symmetric"):
        dpp_kernel([1, 1], torch.tensor([[1.0, 0.5], [0.2, 1.0]]))
    with pytest.raises(ConfigError, match="not positive semi-definite"):
        dpp_kernel([1, 1], torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ConfigError, match="NaN"):
        dpp_kernel([1, math.nan], torch.eye(2))
    with pytest.raises(ConfigError, match="N and"):
        dpp_kernel([1, 1], torch.eye(3))
    with pytest.raises(ConfigError, match="N and"):
        dpp_kernel([], [])
    with pytest.raises(ConfigError, match="no model is better"):
        dpp_kernel([0, -1], torch.eye(2))
    with pytest.raises(ConfigError, match="too many"):
        exact_map(torch.eye(30), 10)


@pytest.mark.parametrize("kernel", [[], torch.zeros(0, 0), [1.0], [[1.0, 0.0]]])
def test_what_is_no_kernel_is_refused_in_a_line(kernel):
    for search in (greedy_order, lambda L: exact_map(L, 1), lambda L: sample_kdpp(L, 1)):
        with pytest.raises(ConfigError, match=r"DPP: the kernel has the shape .*; give \(N, N\)"):
            search(kernel)
