"""Drops of water or splashes of mud on an image, as make_cifar_c.py of Hendrycks has them.

The published code uses OpenCV. What it needs of that is restated here, and gives OpenCV's own
numbers at 32 pixels: scikit-image's `canny` finds other edges (it measures gradients by another
norm and interpolates between pixels), which changes the cover by up to a third.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lightning_merge.data.corruption_parameters import MUD, WATER

Image = NDArray[np.float32]  # (C, H, W), in [0, 1]

_COLOURS = {WATER: (175, 238, 238), MUD: (63, 42, 20)}
_LUMINANCE = np.array((0.299, 0.587, 0.114))
_LIGHT = np.array(((-2, -1, 0), (-1, 1, 1), (0, 1, 2)))


def spatter(
    image: Image,
    draw: Generator,
    scale: float,
    mean: float,
    deviation: float,
    blur: float,
    threshold: float,
    strength: float,
    kind: float,
) -> Image:
    """Drops of water that brighten, or splashes of mud that cover.

    Args:
        image: `(C, H, W)` in [0, 1].
        draw: Where the drops come from.
        scale: Height of the image by the height at which drops are made.
        mean: Of the liquid, before it is blurred.
        deviation: Of the liquid.
        blur: Deviation of the Gaussian that blurs it, in pixels.
        threshold: Where there is less, it is dry.
        strength: How opaque water is at most, or how much mud is blurred, in pixels.
        kind: `WATER` or `MUD`.

    Returns:
        `(C, H, W)`, where water can exceed 1.
    """
    from scipy.ndimage import gaussian_filter

    height, width = image.shape[1:]
    shape = (max(round(height / scale), 1), max(round(width / scale), 1))
    liquid = gaussian_filter(mean + deviation * draw.standard_normal(shape), blur, mode="nearest")
    if kind == MUD:
        cover = gaussian_filter((liquid > threshold).astype(np.float64), strength, mode="nearest")
        cover[cover < 0.8] = 0
    else:
        drops = np.where(liquid < threshold, 0, liquid * 255).clip(0, 255).astype(np.uint8)
        cover = strength * _relief(drops)
    cover = resized(cover.astype(np.float32), (height, width))
    colour = np.array(_COLOURS[kind]) / 255
    if len(image) == 1:
        colour = colour[None] @ _LUMINANCE
    layer = cover * colour.astype(np.float32).reshape(-1, 1, 1)
    return image * (1 - cover) + layer if kind == MUD else image + layer


def resized(channel: Image, shape: tuple[int, int], method: str = "BILINEAR") -> Image:
    """One channel `(H, W)` by Pillow's method of that name."""
    from PIL import Image as Pillow

    if channel.shape == shape:
        return channel
    size = (shape[1], shape[0])
    return np.asarray(Pillow.fromarray(channel).resize(size, Pillow.Resampling[method]))


def _relief(liquid: NDArray[np.uint8]) -> NDArray[np.floating]:
    """Drops lit from one side: `(H, W)` in [0, 1], zero outside them."""
    from scipy.ndimage import correlate, uniform_filter

    distance = np.minimum(_distance(canny(liquid, 50, 150)), 20)
    # The sum of nine distances can be a little below the whole number that it is.
    depth = _equalised((uniform_filter(distance, 3, mode="mirror") + 1e-4).astype(np.uint8))
    lit = correlate(depth, _LIGHT, mode="mirror").clip(0, 255).astype(np.float64)
    shaded = liquid * np.rint(uniform_filter(lit, 3, mode="mirror"))
    return shaded / (shaded.max() or 1)


def canny(image: NDArray[np.uint8], low: int, high: int) -> NDArray[np.bool_]:
    """Edges by Canny's method as OpenCV has it: Sobel's gradients, their sum of magnitudes.

    `(H, W)` to the same. A pixel is a strong one with a gradient above `high`; above `low` it
    belongs to an edge that touches a strong one.
    """
    from scipy.ndimage import binary_propagation, correlate

    sobel = np.array(((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)))
    across = correlate(image.astype(np.int64), sobel, mode="nearest")
    down = correlate(image.astype(np.int64), sobel.T, mode="nearest")
    size = np.abs(across) + np.abs(down)
    padded = np.pad(size, 1)
    height, width = size.shape

    def beside(rows: int, columns: int) -> NDArray[np.int64]:
        return padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    # OpenCV's own fixed-point tangents of 22.5 and 67.5 degrees.
    steep, flat = np.abs(down) << 15, np.abs(across) * 13573
    falling = (across ^ down) >= 0
    along = np.where(
        falling,
        (size > beside(-1, -1)) & (size > beside(1, 1)),
        (size > beside(-1, 1)) & (size > beside(1, -1)),
    )
    along = np.where(
        steep > flat + (np.abs(across) << 16),
        (size > beside(-1, 0)) & (size >= beside(1, 0)),
        along,
    )
    along = np.where(steep < flat, (size > beside(0, -1)) & (size >= beside(0, 1)), along)
    weak = along & (size > low)
    return binary_propagation(weak & (size > high), structure=np.ones((3, 3)), mask=weak)


def _distance(edges: NDArray[np.bool_]) -> NDArray[np.floating]:
    """How far it is to the nearest edge, by steps to the side, diagonally and as a knight.

    OpenCV's lengths of these steps (Borgefors, 1986). The edge is the nearest one as the crow
    flies, which is another one in less than a pixel of a thousand.
    """
    from scipy.ndimage import distance_transform_edt

    if not edges.any():
        return np.full(edges.shape, np.inf)
    nearest = distance_transform_edt(~edges, return_distances=False, return_indices=True)
    steps = np.abs(nearest - np.indices(edges.shape))
    longer, shorter = steps.max(0), steps.min(0)
    return np.where(
        longer >= 2 * shorter,
        (longer - 2 * shorter) + 2.1969 * shorter,
        2.1969 * (longer - shorter) + 1.4 * (2 * shorter - longer),
    )


def _equalised(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The histogram of whole numbers stretched to be even from 0 to 255."""
    below = np.bincount(values.ravel(), minlength=256).cumsum()
    lowest = below[values.min()]
    if lowest == values.size:
        return values.astype(np.int64)
    levels = (below - lowest) / (values.size - lowest) * 255
    return np.rint(levels).astype(np.int64)[values]
