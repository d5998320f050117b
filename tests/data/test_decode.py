"""Images as other programs write them are read as a viewer shows them."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from made_folders import refused
from PIL import Image

from lightning_merge.data.decode import decode

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def read(file, channels=1, size=8):
    """`(H, W)` or `(H, W, 3)`, as integers."""
    pixels = decode(file, "this image", size, channels).permute(1, 2, 0).numpy().astype(int)
    return pixels[..., 0] if channels == 1 else pixels


def saved(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    file.seek(0)
    return file


def tiff(values, endian="<", bits=16, sample=1, photometric=1, orientation=None):
    """An uncompressed grey TIFF, written byte by byte."""
    height, width = values.shape
    raw = values.astype(values.dtype.newbyteorder(endian)).tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2)
        raw = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in pairs.tolist())
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height}
    entries |= {279: len(raw), 339: sample}
    if orientation is not None:
        entries[274] = orientation
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    entries[273] = start
    head = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(f"{endian}I", 8)
    head += struct.pack(f"{endian}H", len(entries))
    for tag, value in sorted(entries.items()):
        head += struct.pack(f"{endian}HHII", tag, 4, 1, value)
    return io.BytesIO(head + bytes(4) + raw)


def png(rows, depth=16, kind=0, clear=None):
    """A PNG of packed rows, written chunk by chunk; `kind` is 0 for grey, 2 for colour."""

    def chunk(name, content):
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    width = len(rows[0]) * 8 // (depth * (3 if kind == 2 else 1))
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0))
        + (b"" if clear is None else chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk(b"IEND", b"")
    )


def png16(values):
    return png([row.astype(">u2").tobytes() for row in values])


DEEP = np.rint(RAMP * 65535).astype(np.uint16)
SIXTEEN = {
    "png": lambda: png16(DEEP),
    "tiff": lambda: tiff(DEEP),
    "tiff, the other way round": lambda: tiff(DEEP, ">"),
    "compressed tiff": lambda: saved(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
    "pgm": lambda: io.BytesIO(b"P5 8 8 65535\n" + DEEP.astype(">u2").tobytes()),
    "12-bit pgm": lambda: io.BytesIO(
        b"P5 8 8 4095\n" + np.rint(RAMP * 4095).astype(">u2").tobytes()
    ),
    "12-bit tiff": lambda: tiff(np.rint(RAMP * 4095).astype(np.uint16), bits=12),
    "jpeg 2000": lambda: saved(Image.fromarray(DEEP), "JPEG2000", irreversible=False),
}


@pytest.mark.parametrize("name", SIXTEEN)
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_grey_is_scaled_by_the_range_of_its_format(name, channels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read(SIXTEEN[name](), channels)
    expected = RAMP * 255 if channels == 1 else np.dstack([RAMP * 255] * 3)
    assert np.abs(found - expected).max() <= 0.6


def test_twelve_bits_in_sixteen_are_what_the_file_says_with_a_warning():
    for file in (png16(DEEP // 16), tiff(DEEP // 16)):
        with pytest.warns(UserWarning, match="no value above 4095"):
            found = read(file)
        assert np.abs(found - RAMP * 4095 / 257).max() <= 0.6


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (RAMP, 0, 1),
        (RAMP * 0.3, 0, 1),
        (RAMP * 200, 0, 255),
        (RAMP * 4000, 0, 4095),
        (RAMP * 40000, 0, 65535),
        (RAMP * 3e6 + 5, 5, 3e6 + 5),
        (RAMP * 2000 - 1000, -1000, 1000),
        (RAMP - 0.25, -0.25, 0.75),
        (RAMP * 0, 0, 1),
        (RAMP * 0 - 3, -3, -2),
    ],
)
@pytest.mark.parametrize("endian", "<>")
def test_floating_point_goes_by_the_stated_rule(values, low, high, endian):
    found = read(tiff(values.astype(np.float32), endian, 32, 3))
    assert np.abs(found - (values - low) / (high - low) * 255).max() <= 0.6


@pytest.mark.parametrize(
    ("kind", "bits", "sample", "values", "low", "high"),
    [
        ("i4", 32, 2, RAMP * 250, 0, 255),
        ("i4", 32, 2, RAMP * 4095, 0, 4095),
        ("i4", 32, 2, RAMP * 60000, 0, 65535),
        ("i4", 32, 2, RAMP * 1e9, 0, 1e9),
        ("i2", 16, 2, RAMP * 3000 - 1024, -1024, 1976),
        ("u4", 32, 1, RAMP * 4095, 0, 4095),
    ],
)
def test_whole_numbers_without_a_range_go_by_the_stated_rule(kind, bits, sample, values, low, high):
    values = np.rint(values)
    found = read(tiff(values.astype(kind), bits=bits, sample=sample))
    assert np.abs(found - (values - low) / (high - low) * 255).max() <= 0.6


@pytest.mark.parametrize("values", [DEEP, RAMP.astype(np.float32)])
def test_white_can_be_zero(values):
    bits, sample = values.itemsize * 8, 3 if values.dtype.kind == "f" else 1
    found = read(tiff(values, bits=bits, sample=sample, photometric=0))
    assert np.abs(found - (255 - RAMP * 255)).max() <= 0.6


TURNED = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: np.swapaxes(image, 0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(np.swapaxes(image, 0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("note", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "deep TIFF", "deep PNG"])
def test_the_note_of_its_orientation_is_followed_once(note, kind):
    stored = np.rint(RAMP * 255).astype(np.uint8)
    image = Image.fromarray(stored.astype(np.uint16) * 257 if "deep" in kind else stored)
    exif = image.getexif()
    exif[0x0112] = note
    how = {"lossless": True} if kind == "WEBP" else {}
    found = read(saved(image, kind.removeprefix("deep "), exif=exif, **how))
    assert np.array_equal(found, TURNED[note](stored))


def test_a_damaged_note_turns_nothing():
    stored = np.rint(RAMP * 255).astype(np.uint8)
    for note in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b""):
        assert np.array_equal(read(saved(Image.fromarray(stored), "PNG", exif=note)), stored)


COLOUR = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
ALPHA = np.rint(RAMP * 255).astype(np.uint8)
OVER_WHITE = COLOUR * (ALPHA / 255)[..., None] + 255 * (1 - ALPHA / 255)[..., None]


def test_what_is_transparent_lies_over_white():
    colour = saved(Image.fromarray(np.dstack([COLOUR, ALPHA])), "PNG")
    assert np.abs(read(colour, 3) - OVER_WHITE).max() <= 1
    grey = np.dstack([COLOUR[..., 0], ALPHA])
    for channels in (1, 3):
        found = read(saved(Image.fromarray(grey), "PNG"), channels)
        expected = OVER_WHITE[..., 0] if channels == 1 else np.dstack([OVER_WHITE[..., 0]] * 3)
        assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", [0, 1])
def test_the_grey_that_a_png_calls_transparent_is_white_at_each_depth(depth, clear):
    most = 2**depth - 1
    values = [0, 1, most, most // 2] * 2
    bits = "".join(f"{value:0{depth}b}" for value in values)
    found = read(png([int(bits, 2).to_bytes(depth, "big")] * 8, depth, clear=[clear]))
    expected = [255 if value == clear else round(value / most * 255) for value in values]
    assert found.tolist() == [expected] * 8


def test_the_colour_that_a_png_of_16_bits_calls_transparent_is_white():
    row = np.array([[2571, 5000, 7710], [11, 136, 30]] * 4, ">u2").tobytes()
    found = read(png([row] * 8, kind=2, clear=[2571, 5000, 7710]), 3)
    assert found[0, :2].tolist() == [[255, 255, 255], [0, 0, 0]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes_become_colours_and_their_transparent_ones_white(kind):
    image = Image.fromarray((np.arange(64).reshape(8, 8) % 4).astype(np.uint8), "L").convert("P")
    image.putdata((np.arange(64) % 4).tolist())
    image.putpalette([250, 10, 20, 30, 240, 40, 50, 60, 230, 70, 80, 90])
    plain = read(saved(image, kind), 3)
    assert plain[0, :4].tolist() == [[250, 10, 20], [30, 240, 40], [50, 60, 230], [70, 80, 90]]
    seen = read(saved(image, kind, transparency=1), 3)
    assert seen[0, :3].tolist() == [[250, 10, 20], [255, 255, 255], [50, 60, 230]]


def test_one_bit_is_black_and_white_and_cmyk_becomes_colours():
    bits = Image.fromarray(ALPHA > 127)
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(read(saved(bits, kind)), 255 * (ALPHA > 127))
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[..., 0] = 255
    cyan = saved(Image.fromarray(ink, "CMYK"), "TIFF")
    assert np.abs(read(cyan, 3) - np.array([0, 255, 255])).max() <= 2
    assert np.abs(read(cyan, 1) - (0.587 + 0.114) * 255).max() <= 2


def test_of_several_frames_the_first_is_read():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        how = {"lossless": True} if kind == "WEBP" else {}
        file = saved(frames[0], kind, save_all=True, append_images=frames[1:], **how)
        assert read(file, 3)[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"])
def test_what_is_cut_off_is_refused_by_name_in_one_line(kind):
    draw = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    whole = saved(Image.fromarray(draw), kind).getvalue()
    for length in (0, 3, len(whole) // 3, 2 * len(whole) // 3):
        message = refused(lambda length=length: read(io.BytesIO(whole[:length])))
        assert message.startswith("this image is damaged")
        assert "0x" not in message


def test_what_is_not_a_number_and_what_is_a_program_are_refused():
    values = RAMP.astype(np.float32).copy()
    values[3, 3] = np.nan
    assert "not finite" in refused(lambda: read(tiff(values, bits=32, sample=3)))
    drawn = saved(Image.fromarray(COLOUR), "EPS")
    assert "PostScript" in refused(lambda: read(drawn, 3))
    double = tiff(RAMP, bits=64, sample=3)
    assert "no image that Pillow knows" in refused(lambda: read(double))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "no regular file" in refused(lambda: read(str(tmp_path / "a.png")))
    assert "is missing" in refused(lambda: read(str(tmp_path / "b.png")))
