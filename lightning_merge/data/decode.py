"""One image file as a viewer shows it, in 8 bits, cut and resized."""

import os
import stat
import warnings
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_merge.errors import ConfigError, DataError, one_line, printable

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

# TIFF's tags.
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

# How many times longer than wide an image may be to be resized whole.
_LONG = 10
# An image of more pixels than the first must have a byte of the file for each so many: without
# compression it would be many times the file.
_MANY_PIXELS, _PIXELS_A_BYTE = 1 << 23, 200
# How many pixels are brought to 8 bits at once.
_AT_ONCE = 1 << 20


class UnreadableImageError(DataError):
    """An image that is missing, damaged, or of a format that cannot be read."""

    def __init__(self, message: str) -> None:
        # torch raises what a loading process raised again, with that process's traceback as
        # its message: the last line of it is what was raised.
        last = message.rstrip("\n").rpartition("\n")[2]
        super().__init__(last.removeprefix(f"{__name__}.{type(self).__name__}: "))


def decode(
    file: str | IO[bytes],
    name: str,
    size: int,
    channels: int,
    interpolation: str = "bilinear",
    crop_pct: float = 1.0,
) -> Tensor:
    """Read one image: the first frame, upright, over white, in 8 bits, cut and resized.

    What `torchvision.transforms.Resize(size)` and `CenterCrop(size)` make of it (bilinear,
    antialiased), after these rules:

    * A note of its orientation (EXIF) is followed.
    * What is transparent lies over white. Palettes, CMYK and the like become colours.
    * Grey of 12 or 16 bits is scaled by the range of its format: 65535 (4095) becomes 255.
    * 32-bit and signed integers and floating point have no range. Where no value is negative,
      the smallest of 1 (floating point only), 255, 4095 and 65535 that none exceeds becomes
      255; else the image's own range is stretched from 0 to 255.
    * Colours of 16 bits keep their upper 8.

    Args:
        file: A path or an open file, in any format that Pillow reads, except PostScript.
        name: What an error calls it.
        size: Height and width of the result, in pixels.
        channels: 1 for grey, 3 for colour, whatever the file has.
        interpolation: Pillow's name for how to resize: `bilinear`, `bicubic`, `nearest`, ...
        crop_pct: Which fraction of the resized image's shorter side is kept (timm's name).

    Returns:
        `(channels, size, size)`, uint8.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        resampling = Image.Resampling[interpolation.upper()]
    except KeyError as error:
        raise ConfigError(
            f"interpolation is {printable(interpolation)}: choose bilinear, bicubic, nearest, "
            "lanczos, box or hamming"
        ) from error

    shown = printable(name)
    try:
        # A pipe would be waited for.
        if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("no regular file")
        with Image.open(file) as opened:
            # Pillow would have another program run it.
            if opened.format == "EPS":
                raise ValueError("PostScript is a program")
            _check_size(opened, file)
            square = _cut(_flat(opened, channels), size, resampling, crop_pct)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{shown} is missing: unpack the data set again") from error
    # Each of Pillow's readers has errors of its own.
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no image that Pillow knows" if unknown else one_line(error)
        raise UnreadableImageError(
            f"{shown} is damaged or of an unknown format ({reason}): replace it, or unpack the "
            "data set again"
        ) from error
    pixels = torch.from_numpy(np.array(square))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def _check_size(opened: "Image", file: str | IO[bytes]) -> None:
    pixels = opened.width * opened.height
    if pixels <= _MANY_PIXELS:
        return
    if isinstance(file, str):
        size = os.stat(file).st_size
    else:
        here = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(here)
    if pixels > _PIXELS_A_BYTE * size:
        raise ValueError(f"{opened.width} x {opened.height} pixels in a file of {size} bytes")


def check_images(size: int, channels: int) -> None:
    """Refuses, by a `ConfigError` with the reason, what `decode` could not make."""
    if size < 1:
        raise ConfigError(f"image_size is {size}: choose 1 or more pixels")
    if channels not in (1, 3):
        raise ConfigError(f"in_chans is {channels}: choose 1 (grey) or 3 (colour)")


def _flat(opened: "Image", channels: int) -> "Image":
    """Upright, without transparency, in mode `L` or `RGB`."""
    from PIL import Image

    _widen_transparent(opened)
    image = _upright(opened)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        tags = getattr(opened, "tag_v2", {})
        levels = _eight_bits(image, opened.format, tags)
        if image.has_transparency_data:
            levels[np.asarray(image) == image.info["transparency"]] = 255
        image = Image.fromarray(levels)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _widen_transparent(opened: "Image") -> None:
    """Brings the value that a PNG calls transparent to the bits that Pillow brings pixels to."""
    key = opened.info.get("transparency")
    if opened.format != "PNG" or key is None:
        return
    # It is gone once the image is loaded.
    raw = opened.tile[0].args  # type: ignore[attr-defined]
    if raw in ("L;2", "L;4"):
        opened.info["transparency"] = key * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B":
        opened.info["transparency"] = tuple(value >> 8 for value in key)


def _upright(opened: "Image") -> "Image":
    """Turned by the note of its orientation; `ImageOps.exif_transpose` fails at damaged ones."""
    from PIL.ExifTags import Base
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    # A TIFF is turned when it is loaded, and has no note then.
    opened.load()
    try:
        turn = turns.get(opened.getexif().get(Base.Orientation, 1))
    except Exception:
        return opened
    return opened if turn is None else opened.transpose(turn)


def _eight_bits(image: "Image", kind: str | None, tags: Mapping[int, object]) -> NDArray[np.uint8]:
    """Deep grey, `(H, W)`, of a file in Pillow's format `kind` with TIFF's `tags`."""
    values = np.asarray(image)
    # Either is NaN where any value is.
    lowest, highest = float(values.min()), float(values.max())
    if not np.isfinite((lowest, highest)).all():
        raise ValueError("some of its values are not finite")
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM"))
    if sixteen and tags.get(_BITS) == (12,):
        black, white = 0.0, 4095.0
    elif sixteen:
        black, white = 0.0, 65535.0
        _suspect(highest)
    else:
        black, white = _usual_range(lowest, highest, fractions=image.mode == "F")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        black, white = white, black
    levels = np.empty(values.shape, np.uint8)
    # A few rows at a time: a file of kilobytes can have a hundred million pixels.
    for rows in np.array_split(np.arange(len(values)), -(-values.size // _AT_ONCE)):
        scaled = (values[rows].astype(np.float64) - black) * (255 / ((white - black) or 1))
        levels[rows] = np.rint(scaled)
    return levels


def _suspect(highest: float) -> None:
    if highest <= 4095:
        # Without the file's name: it is the same for a whole set, and shown once.
        warnings.warn(
            "an image of 16 bits has no value above 4095 and is almost black so: if its set has "
            "12 bits, multiply the values in the files by 16",
            stacklevel=2,
        )


def _usual_range(lowest: float, highest: float, fractions: bool) -> tuple[float, float]:
    """The values that become 0 and 255 where the format has no range."""
    usual = (1.0, 255.0, 4095.0, 65535.0)[0 if fractions else 1 :]
    limit = next((limit for limit in usual if highest <= limit), None)
    return (lowest, highest) if limit is None or lowest < 0 else (0.0, limit)


def _cut(image: "Image", size: int, resampling: "Resampling", crop_pct: float) -> "Image":
    """Torchvision's `Resize(size / crop_pct)` and `CenterCrop(size)`."""
    width, height = image.size
    shorter, scale = min(width, height), int(size / crop_pct)
    wide, tall = scale * width // shorter, scale * height // shorter
    left, top = round((wide - size) / 2), round((tall - size) / 2)
    square = (left, top, left + size, top + size)
    if max(wide, tall) <= _LONG * scale:
        return image.resize((wide, tall), resampling).crop(square)
    # A strip is resized where it is cut, to within rounding: whole it might not fit into memory.
    across, down = width / wide, height / tall
    box = (square[0] * across, square[1] * down, square[2] * across, square[3] * down)
    return image.resize((size, size), resampling, box=box)
