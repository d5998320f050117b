"""Files of `torch.save`, read without running their code or trusting their content.

`weights_only=True` runs no code. Two checks are added: a small file must not become large in
memory, and a file of another kind is identified in the error message.
"""

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_merge.errors import CheckpointError
from lightning_merge.safetensors_file import MOST_TENSORS

if TYPE_CHECKING:
    from torch import Tensor

# Python objects need up to 64 times the bytes that describe them.
_LONGEST_PICKLE = 2 << 20
_MOST_OPERATIONS = 1 << 19

_OTHER_FILES = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself: run git lfs pull"),
    (b"\x89HDF", "is an HDF5 file, of Keras perhaps: save the weights with torch.save"),
    (b"\x93NUMPY", "is a NumPy array, not a state dict: save it with torch.save"),
    (b"<!DOCTYPE", "is a web page, not a checkpoint: download the file itself"),
    (b"<html", "is a web page, not a checkpoint: download the file itself"),
    (b"\x1f\x8b", "is compressed: unpack it with gunzip first"),
    (b"BZh", "is compressed: unpack it with bunzip2 first"),
    (b"\xfd7zXZ", "is compressed: unpack it with unxz first"),
    (b"\x28\xb5\x2f\xfd", "is compressed: unpack it with unzstd first"),
    (b"GGUF", "is a GGUF file, of llama.cpp: save the weights with torch.save"),
)


def read_torch(path: Path, mapped: bool = False) -> Any:
    """Reads a file of `torch.save` onto the CPU, or leaves it `mapped` on disk if it can be.

    Refused is what is truncated, of another kind, needs code to be read, or would need far more
    memory than its size.
    """
    archive = check_bounded(path)
    import torch

    try:
        with warnings.catch_warnings():
            # These warnings are about how the file was made, which its reader cannot change.
            warnings.simplefilter("ignore")
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=mapped and archive
            )
        tensors = _without_attributes(content)
    except pickle.UnpicklingError as error:
        name = re.search(r"(?:GLOBAL|global:?) `?((?!was\b)[a-zA-Z_]\w*\.[\w.]*\w)", str(error))
        if name and name[1].startswith("torch.nn.parameter.Uninitialized"):
            raise CheckpointError(
                f"{path} has a lazy layer that never ran: run the network on a batch, and save it"
            ) from error
        if name:
            raise CheckpointError(
                f"{path} is refused: reading it would run code ({name[1]}); save its state "
                "dict alone, torch.save(model.state_dict(), ...)"
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint that torch can read") from error
    except Exception as error:
        # A file that is not a pickle can fail anywhere in the unpickler, with any error.
        raise _broken(path) from error
    if mapped and archive:
        _check_records(path, tensors)
    return content


def _check_records(path: Path, tensors: Sequence["Tensor"]) -> None:
    """Checks that each tensor has a record of its size: torch maps beyond one that is shorter."""
    import torch

    with zipfile.ZipFile(path) as file:
        records = Counter(part.file_size for part in file.infolist())
    storages = {}
    for tensor in tensors:
        # What a tensor is made of has no memory of its own.
        made = hasattr(tensor, "__tensor_flatten__")
        if tensor.layout == torch.strided and tensor.device.type == "cpu" and not made:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    if Counter(size for size in storages.values() if size) - records:
        raise _broken(path)


def _without_attributes(content: Any) -> list["Tensor"]:
    """All tensors of a file; what it has set on its dicts and tensors (`items`, say) is removed."""
    from torch import Tensor

    left, seen, tensors = [content], set(), []
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if type(item) is not dict and isinstance(item, dict | Tensor):
            vars(item).clear()
        if isinstance(item, Tensor):
            tensors.append(item)
        elif isinstance(item, dict | list | tuple | set):
            inner = dict.values(item) if isinstance(item, dict) else item
            left.extend(one for one in inner if isinstance(one, dict | list | tuple | set | Tensor))
    return tensors


def check_bounded(path: Path) -> bool:
    """Checks that a file is one of `torch.save` that does not become large in memory.

    Returned is whether it is an archive, which can be left on disk; files of torch before 1.6 are
    not.
    """
    archive = check_kind(path).startswith(b"PK\x03\x04")
    if archive:
        _check_archive(path)
    else:
        _check_pickles(path)
    return archive


def check_kind(path: Path) -> bytes:
    """A file's first bytes, which are not those of a kind that is often mistaken for weights."""
    with path.open("rb") as file:
        begin = file.read(64)
    if not begin:
        raise CheckpointError(f"{path} is empty: copy or save it again")
    for magic, what in _OTHER_FILES:
        if begin.lower().startswith(magic.lower()):
            raise CheckpointError(f"{path} {what}")
    return begin


def _broken(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is not a checkpoint, or is truncated; copy or save it again")


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_parts(path, archive)
    except CheckpointError:
        raise
    except Exception as error:
        raise _broken(path) from error


def _check_parts(path: Path, archive: zipfile.ZipFile) -> None:
    size, parts = path.stat().st_size, archive.infolist()
    names = [part.filename for part in parts]
    # torch finds them in capital letters, too.
    pickles = [part for part in parts if part.filename.lower().endswith(".pkl")]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive, a program: save its weights alone, "
            "torch.save(torch.jit.load(...).state_dict(), ...)"
        )
    if any(name.endswith("/archive_format") for name in names):
        raise CheckpointError(
            f"{path} is an archive of torch.export, a program: save its weights alone, "
            "torch.save(torch.export.load(...).state_dict, ...)"
        )
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(f"{path} is an archive of NumPy arrays: save it with torch.save")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise CheckpointError(
            f"{path} is a compressed archive, not as torch.save writes it; load it where it is "
            "trusted, and save it again"
        )
    if sum(part.file_size for part in parts) > size:
        raise _broken(path)
    if len(parts) > MOST_TENSORS:
        raise CheckpointError(f"{path} holds more than {MOST_TENSORS} tensors: split it")
    described = sum(part.file_size for part in pickles)
    if described > _LONGEST_PICKLE + size // 16:
        raise CheckpointError(
            f"{path} holds {described >> 20} MiB of Python objects beside its tensors; save its "
            "state dict alone, torch.save(model.state_dict(), ...)"
        )
    if any(b"\nbytearray\n" in archive.read(part) for part in pickles):
        raise _of_any_size(path)


def _of_any_size(path: Path) -> CheckpointError:
    # A number is enough to make one of gigabytes.
    return CheckpointError(
        f"{path} holds a bytearray; save its state dict alone, torch.save(model.state_dict(), ...)"
    )


def _check_pickles(path: Path) -> None:
    """Counts the operations of the old format, which does not record its length."""
    left = _MOST_OPERATIONS
    try:
        with path.open("rb") as file:
            # A magic number, the protocol, the machine, the content, the storages' keys.
            for _ in range(5):
                for operation, given, _ in pickletools.genops(file):
                    if operation.name == "GLOBAL" and str(given).endswith(" bytearray"):
                        raise _of_any_size(path)
                    left -= 1
                    if not left:
                        raise CheckpointError(
                            f"{path} holds too many Python objects; save its state dict alone, "
                            "with a torch of 1.6 or later"
                        )
    except CheckpointError:
        raise
    except Exception as error:
        raise _broken(path) from error
