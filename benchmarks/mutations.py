"""Ways to damage a file: bits, bytes, spans, and values that a format's checks do not notice."""

import io
import json
import math
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

Mutate = Callable[[bytes, random.Random, Sequence[bytes]], bytes]

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, 10**30, math.nan, -math.inf, "", "x" * 9999, "\ud800\x1b[31m\n"),
    *([], {}, [[]], {"": {}}, "os.system", "../../etc/passwd", [None] * 50),
)
_PNG = b"\x89PNG\r\n\x1a\n"


def _place(content: bytes, draw: random.Random) -> int:
    # Headers are short, and most of what a reader believes stands in them.
    return draw.randrange(min(len(content), 512) if draw.random() < 0.4 else len(content))


def flip_bit(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """One bit."""
    place = _place(content, draw)
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def set_byte(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """One byte becomes any other."""
    place = _place(content, draw)
    return content[:place] + draw.randbytes(1) + content[place + 1 :]


def set_number(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """One to eight bytes become a number at a limit, in either order."""
    width = draw.choice((1, 2, 4, 8))
    number = draw.choice(_NUMBERS) % 256**width
    place = _place(content, draw)
    new = number.to_bytes(width, draw.choice(("little", "big")))
    return content[:place] + new + content[place + width :]


def truncate(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """The end is missing."""
    return content[: draw.randrange(len(content))]


def delete_span(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Some bytes in the middle are missing."""
    place = _place(content, draw)
    return content[:place] + content[place + draw.randint(1, 64) :]


def repeat_span(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Some bytes stand there several times."""
    place, length = _place(content, draw), draw.randint(1, 64)
    return content[:place] + content[place : place + length] * draw.randint(2, 40) + content[place:]


def insert_bytes(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Random bytes in the middle."""
    place = _place(content, draw)
    return content[:place] + draw.randbytes(draw.randint(1, 16)) + content[place:]


def zero_span(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """A block that was never written."""
    place, length = _place(content, draw), draw.choice((1, 16, 512, 4096))
    return content[:place] + bytes(min(length, len(content) - place)) + content[place + length :]


def splice(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """The beginning of one file, the end of another."""
    other = draw.choice(others)
    return content[: _place(content, draw)] + other[_place(other, draw) :]


def swap_spans(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Two blocks have changed places."""
    length = draw.randint(1, 64)
    a, b = sorted((_place(content, draw), _place(content, draw)))
    b = max(b, a + length)
    first, second = content[a : a + length], content[b : b + length]
    return content[:a] + second + content[a + length : b] + first + content[b + length :]


BYTES: tuple[Mutate, ...] = (
    *(flip_bit, set_byte, set_number, truncate, delete_span, repeat_span, insert_bytes),
    *(zero_span, splice, swap_spans),
)


def inside_archive(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """A member of a zip archive is damaged, and its checksum fits; or it has another name."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        chosen = draw.choice(pickles if pickles and draw.random() < 0.7 else names)
        renamed = draw.random() < 0.1
        for name in names:
            part = old.read(name)
            if name == chosen and not renamed and part:
                for _ in range(draw.choice((1, 1, 1, 2, 4))):
                    part = draw.choice(BYTES)(part, draw, [part]) or b"\0"
            new.writestr(name + "x" if name == chosen and renamed else name, part)
    return made.getvalue()


def inside_json(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """One value of a JSON text becomes another, goes, or is renamed."""
    return json.dumps(_other_value(json.loads(content), draw), allow_nan=True).encode()


def inside_header(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """One value of a safetensors header becomes another, and the header's length fits."""
    length = int.from_bytes(content[:8], "little")
    changed = _other_value(json.loads(content[8 : 8 + length]), draw)
    header = json.dumps(changed).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def inside_chunk(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """One chunk of a PNG file is damaged, and its checksum fits."""
    place, chunks = len(_PNG), []
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    number = draw.randrange(len(chunks))
    kind, data = chunks[number]
    if data:
        data = draw.choice(BYTES)(data, draw, [data])
    chunks[number] = (kind, data)
    if draw.random() < 0.2:
        draw.shuffle(chunks)
    return _PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _other_value(value: Any, draw: random.Random) -> Any:
    """The same nested value, but for one place in it."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        how = draw.random()
        if how < 0.08:
            return {name: one for name, one in value.items() if name != key}
        if how < 0.14:
            return {name + "x" if name == key else name: one for name, one in value.items()}
        return {**value, key: _other_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        place = draw.randrange(len(value))
        how = draw.random()
        if how < 0.1:
            return value[:place] + value[place + 1 :]
        if how < 0.2:
            return value + value[place : place + 1]
        return [_other_value(one, draw) if k == place else one for k, one in enumerate(value)]
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.4:
        return draw.choice((-value, value + 1, value * 2, value / 3, str(value), value + 2**40))
    return draw.choice(_VALUES)


def mutated(
    content: bytes, draw: random.Random, others: Sequence[bytes], inside: Mutate | None
) -> tuple[bytes, str]:
    """A damaged file, and the fault's name.

    Args:
        content: The whole file.
        draw: Where choices come from.
        others: Whole files of the same kind.
        inside: A fault that the format's own checks do not notice, used for half of the files.
    """
    if inside is not None and draw.random() < 0.5:
        return inside(content, draw, others), inside.__name__
    names = []
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        fault = draw.choice(BYTES)
        content = fault(content, draw, others) or b"\0"
        names.append(fault.__name__)
    return content, names[0] if len(names) == 1 else "several"


FAULTS: tuple[Mutate, ...] = (*BYTES, inside_archive, inside_header, inside_json, inside_chunk)
