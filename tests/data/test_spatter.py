"""Water on an image: what OpenCV gave by the published code for the same random numbers."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from lightning_merge.data import Corruption
from lightning_merge.data.spatter import canny

# make_cifar_c.py's cover of images 0 to 3, by OpenCV 5.0: its mean, the fraction that it
# wets, and its sum weighted by 0, 1, ... along the rows.
PUBLISHED = {
    1: [
        (0.004713, 0.021484, 1016.04),
        (0.006254, 0.032227, 2292.23),
        (0.007769, 0.037109, 3865.67),
        (0.006666, 0.032227, 3483.9),
    ],
    2: [
        (0.0133, 0.064453, 5970.52),
        (0.014528, 0.068359, 6443.35),
        (0.01967, 0.102539, 11469.98),
        (0.015117, 0.067383, 7822.12),
    ],
    3: [
        (0.028107, 0.154297, 15420.12),
        (0.026376, 0.130859, 11242.87),
        (0.042786, 0.256836, 23624.63),
        (0.04831, 0.233398, 27532.98),
    ],
}

# cv2.Canny(image, 50, 150) of the image below: each row as a binary number.
EDGES = [
    537919746, 538120052, 538970132, 541071364, 536875012, 543174660, 541073412, 549462020,
    545267720, 545267728, 562331664, 553812000, 50364448, 33587232, 33587232, 100696160,
    67182656, 67186882, 67174530, 268566658, 268566786, 268828930, 274466562, 270795010,
]  # fmt: skip


@pytest.mark.parametrize("severity", PUBLISHED)
def test_water_covers_what_the_published_code_covers(severity):
    wet = Corruption("spatter", severity)(torch.zeros(4, 3, 32, 32, dtype=torch.float64), range(4))
    for image, (mean, fraction, weighted) in zip(wet, PUBLISHED[severity], strict=True):
        cover = image[1] * 255 / 238
        assert cover.mean().item() == pytest.approx(mean, rel=3e-4)
        assert (cover > 0).double().mean().item() == pytest.approx(fraction, abs=2e-6)
        places = torch.arange(1024.0, dtype=torch.float64).view(32, 32)
        assert (cover * places).sum().item() == pytest.approx(weighted, rel=3e-4)


def test_edges_are_opencvs():
    y, x = np.mgrid[:24, :31]
    image = ((np.sin(x / 3.1 + y / 9.3) + np.cos(y / 4.7 - x / 11)) * 60 + 128).astype(np.uint8)
    found = canny(image, 50, 150)
    rows = [int("".join("01"[int(pixel)] for pixel in row), 2) for row in found]
    assert rows == EDGES


def test_edges_are_canny_s_pixel_by_pixel():
    noise = np.random.default_rng(0).standard_normal((20, 26))
    image = (128 + 400 * gaussian_filter(noise, 1.5)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(canny(image, 50, 150), slowly(image.astype(int), 50, 150))


def slowly(image, low, high):
    """Canny's edges: steepest across, above `low`, and joined to one above `high`."""
    height, width = image.shape
    edged = np.pad(image, 1, mode="edge")
    across, down = np.zeros((2, height, width), int)
    for y in range(height):
        for x in range(width):
            window = edged[y : y + 3, x : x + 3]
            across[y, x] = (window[:, 2] - window[:, 0]) @ [1, 2, 1]
            down[y, x] = (window[2] - window[0]) @ [1, 2, 1]
    size = np.pad(abs(across) + abs(down), 1)
    weak = set()
    for y in range(height):
        for x in range(width):
            angle = np.degrees(np.arctan2(abs(down[y, x]), abs(across[y, x])))
            if angle < 22.5:
                step, strict = (0, 1), False
            elif angle > 67.5:
                step, strict = (1, 0), False
            else:
                step, strict = (1, 1 if across[y, x] * down[y, x] >= 0 else -1), True
            here = size[y + 1, x + 1]
            before = size[y + 1 - step[0], x + 1 - step[1]]
            after = size[y + 1 + step[0], x + 1 + step[1]]
            if here > low and here > before and (here > after or (here == after and not strict)):
                weak.add((y, x))
    reached = [place for place in weak if size[place[0] + 1, place[1] + 1] > high]
    edges = np.zeros((height, width), bool)
    while reached:
        y, x = reached.pop()
        if (y, x) in weak:
            weak.discard((y, x))
            edges[y, x] = True
            reached += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return edges
