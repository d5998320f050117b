"""One damaged file: made from a seed and a number, read, and what came of it."""

import contextlib
import io
import random
import shutil
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from benchmarks.mutations import mutated
from benchmarks.readers import kinds
from lightning_merge.errors import MergeError


def one_file(seed: int, number: int, folder: Path) -> tuple[str, str, str]:
    """Makes file `number` of a seed and reads it.

    Returns:
        Its kind, its fault, and the outcome: `read`, `refused`, or the finding.
    """
    draw = random.Random(f"{seed}/{number}")
    every = kinds()
    kind = draw.choices(every, [one.share for one in every])[0]
    name = draw.choice(list(kind.files))
    try:
        content, fault = mutated(kind.files[name], draw, list(kind.files.values()), kind.inside)
    except Exception as error:
        return kind.name, "none", f"finding: the mutation failed: {error!r}"
    folder.mkdir()
    try:
        for other, whole in kind.beside.items():
            (folder / other).write_bytes(whole)
        (folder / name).write_bytes(content)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = outcome_of(lambda: kind.read(folder / name, draw))
        return kind.name, fault, outcome
    finally:
        shutil.rmtree(folder)


def outcome_of(read: Callable[[], None]) -> str:
    try:
        read()
    except MergeError as error:
        text = str(error)
        return "refused" if text.isprintable() and text else f"finding: printed {text[:80]!r}"
    except SystemExit as error:
        return f"finding: SystemExit({error.code})"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [one for one in frames if "/lightning_merge/" in one.filename]
        last = (own or frames)[-1]
        place = f"{Path(last.filename).name}:{last.name}"
        return f"finding: {type(error).__name__} from {place}: {str(error)[:120]}"
    return "read"
