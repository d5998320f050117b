"""Means, variances and covariances of two networks' units, summed up batch by batch."""

import torch
from torch import Tensor

from lightning_merge.distributed import ranks, sum_over_ranks

# Products are summed in float32 within a batch. About zero they lose as many digits as the
# mean is larger than the deviation; beyond this ratio a shift is worth its copy.
_OFF_CENTRE = 4.0
_IN_CACHE = 512


class Moments:
    """Running first and second moments of two sets of units that saw the same data.

    Products are taken in float32, about a shift near the mean where units lie far from zero, and
    summed in float64 over the batches. With `own` the covariances inside each set are kept too.
    """

    def __init__(self, own: bool = False) -> None:
        self.own = own
        self.count = 0

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add observations, `(N, n, P)` each, `N` and `P` being the same data in both."""
        b = b.to(a.device)
        if not self.count:
            self._start(a, b)
        a, b = _shifted(a, self.shift_a), _shifted(b, self.shift_b)
        self.count += a.shape[0] * a.shape[2]
        for sums, squares, value in (
            (self.sum_a, self.square_a, a),
            (self.sum_b, self.square_b, b),
        ):
            sums += value.sum(2).double().sum(0)
            squares += _squares(value)
        self.product += _products(a, b)
        if self.own:
            self.product_a += _products(a, a)
            self.product_b += _products(b, b)

    def _start(self, a: Tensor, b: Tensor) -> None:
        self.shift_a, self.shift_b = _shift(a), _shift(b)
        n, m = a.shape[1], b.shape[1]

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=a.device)

        self.sum_a, self.square_a = zeros(n), zeros(n)
        self.sum_b, self.square_b = zeros(m), zeros(m)
        self.product = zeros(n, m)
        if self.own:
            self.product_a, self.product_b = zeros(n, n), zeros(m, m)

    def sum_over_ranks(self) -> None:
        """Makes the moments those of all ranks' observations; every rank has had some."""
        if ranks()[1] == 1:
            return
        shifts = [
            torch.zeros_like(sums) if shift is None else shift.double()
            for shift, sums in ((self.shift_a, self.sum_a), (self.shift_b, self.sum_b))
        ]
        common = [total / ranks()[1] for total in sum_over_ranks(shifts)]
        # Each rank's sums are about its own shift; about the common one they can be added.
        a, b = (own - other for own, other in zip(shifts, common, strict=True))
        n, sum_a, sum_b = self.count, self.sum_a, self.sum_b
        held = [
            torch.tensor([n], device=sum_a.device),
            sum_a + n * a,
            sum_b + n * b,
            self.square_a + 2 * a * sum_a + n * a.square(),
            self.square_b + 2 * b * sum_b + n * b.square(),
            _moved(self.product, a, b, sum_a, sum_b, n),
        ]
        if self.own:
            held.append(_moved(self.product_a, a, a, sum_a, sum_a, n))
            held.append(_moved(self.product_b, b, b, sum_b, sum_b, n))
        count, self.sum_a, self.sum_b, self.square_a, self.square_b, *products = sum_over_ranks(
            held
        )
        self.count = int(count)
        self.shift_a, self.shift_b = common
        self.product = products[0]
        if self.own:
            self.product_a, self.product_b = products[1:]

    def covariance(self) -> Tensor:
        """Covariances of a's units with b's, `(n, n)`."""
        return self._central(self.product, self.sum_a, self.sum_b)

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances within a, between a and b, and within b, `(n, n)` each; needs `own`."""
        return (
            self._central(self.product_a, self.sum_a, self.sum_a),
            self.covariance(),
            self._central(self.product_b, self.sum_b, self.sum_b),
        )

    def products(self) -> Tensor:
        """Means of products of a's units with b's, means not taken off, `(n, n)`."""
        means = []
        for sums, shift in ((self.sum_a, self.shift_a), (self.sum_b, self.shift_b)):
            mean = sums / self.count
            means.append(mean if shift is None else mean + shift.double())
        return self.covariance() + torch.outer(*means)

    def correlation(self) -> Tensor:
        """Pearson correlations, `(n, n)`; units that never vary have correlation 0."""
        scales = []
        for sums, squares, shift in (
            (self.sum_a, self.square_a, self.shift_a),
            (self.sum_b, self.square_b, self.shift_b),
        ):
            square = squares / self.count
            variance = square - (sums / self.count).square()
            # What rounding alone makes of a constant.
            floor = (1e-6 * square).clamp_min(1e-30)
            if shift is not None:
                floor = torch.maximum(floor, (1e-6 * shift.double()).square())
            alive = variance > floor
            scales.append(torch.where(alive, variance.clamp_min(1e-30).rsqrt(), 0.0))
        return self.covariance() * scales[0][:, None] * scales[1]

    def _central(self, product: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return product / self.count - torch.outer(left / self.count, right / self.count)


def _shift(value: Tensor) -> Tensor | None:
    """The first batch's means, `(n,)`, if some unit lies far from zero."""
    count = value.shape[0] * value.shape[2]
    mean = value.sum((0, 2)) / count
    square = _squares(value) / count
    # In this form it is true of a unit that never varies, too.
    off = mean.square() * (1 + _OFF_CENTRE**2) > square * _OFF_CENTRE**2
    return mean if bool((off & (mean != 0)).any()) else None


def _shifted(value: Tensor, shift: Tensor | None) -> Tensor:
    return value if shift is None else value - shift[:, None]


def _moved(product: Tensor, a: Tensor, b: Tensor, sum_a: Tensor, sum_b: Tensor, n: int) -> Tensor:
    """Sums of products where `a` and `b` are added to each of the `n` observations."""
    return product + torch.outer(a, sum_b) + torch.outer(sum_a, b) + n * torch.outer(a, b)


def _squares(value: Tensor) -> Tensor:
    """Sums of squares over examples and positions, `(n,)`, float64."""
    if value.stride(1) > 1 or value.is_cuda:
        return torch.linalg.vector_norm(value, dim=2).double().square().sum(0)
    # Norms down the columns of a matrix are slow on a CPU; squares that stay in its cache are not.
    parts = [part.square().sum((0, 2)) for part in value.split(_IN_CACHE, dim=2)]
    return torch.stack(parts).sum(0, dtype=torch.float64)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products over examples and positions, `(n, m)`, float64."""
    examples, units, positions = a.shape
    if examples > 1 and positions >= units:
        # As it lies in memory; the products of single examples are no larger than the values.
        return torch.bmm(a, b.mT).sum(0, dtype=torch.float64)
    left, right = (x.transpose(0, 1).reshape(x.shape[1], -1) for x in (a, b))
    return (left @ right.T).double()
