"""A network as a program that runs without its Python class: ONNX, or torch's own `.pt2`."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.checkpoint import Checkpoint
from lightning_merge.errors import ConfigError, one_line
from lightning_merge.files import write_whole
from lightning_merge.preprocessing import preprocessing_of

# Programs fuse operations, and sum in another order.
_RELATIVE = 1e-4


def check_installed() -> None:
    """Checks that ONNX files can be written and read; a `ConfigError` if not."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--onnx needs {' and '.join(missing)}: pip install 'lightning-merge[onnx]'"
        )


def example_images(checkpoint: Checkpoint, network: nn.Module | None) -> Tensor:
    """Random images `(2, C, H, W)` of the size that a checkpoint records; an error without one."""
    prepared = preprocessing_of(checkpoint.content)
    if network is None or prepared is None:
        what = "what timm network it is of" if network is None else "how large its images are"
        raise ConfigError(
            f"{checkpoint.path} does not say {what}, and --onnx and --torch_export need it: "
            "export without them"
        )
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *map(int, prepared["input_size"]), generator=generator)


def write_program(network: nn.Module, images: Tensor | None, path: Path) -> Path:
    """Writes a network for any batch size, opens the file again, and compares the outputs.

    The images are `(2, C, H, W)`, the file is `.onnx` or `.pt2`. It is there only if its outputs
    are the network's; all else is an error.
    """
    assert images is not None
    network = network.eval()
    # Another number of images than it is traced with.
    others = torch.cat([images, images.flip(0) * 0.5, images.roll(1, -1)])
    save, run = (_save_onnx, _run_onnx) if path.suffix == ".onnx" else (_save_torch, _run_torch)

    def write(partial: Path) -> None:
        try:
            save(network, images, partial)
            found = run(partial, others)
        except Exception as error:
            raise ConfigError(
                f"{path.name} cannot be written for this network ({one_line(error)}): export "
                "without it"
            ) from error
        with torch.no_grad():
            expected = network(others)
        largest = float((found - expected).abs().max()) if found.shape == expected.shape else None
        if largest is None or not largest <= _RELATIVE * float(expected.abs().max()):
            by = f"by {largest:.3g}" if largest is not None else "in shape"
            raise ConfigError(
                f"{path.name} computes something else than the network (its outputs differ {by}): "
                "export without it"
            )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_whole(path, write)


def _save_torch(network: nn.Module, images: Tensor, path: Path) -> None:
    torch.export.save(_traced(network, images), path)


def _traced(network: nn.Module, images: Tensor) -> Any:
    with torch.no_grad():
        return torch.export.export(
            network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )


def _run_torch(path: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        made: Tensor = torch.export.load(path).module()(images)
    return made


def _save_onnx(network: nn.Module, images: Tensor, path: Path) -> None:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    torch.onnx.export(
        _traced(network, images),
        (),
        str(path),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )


def _run_onnx(path: Path, images: Tensor) -> Tensor:
    given = {"images": images.numpy()}
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, given)[0])
    from onnx.reference import ReferenceEvaluator

    (output,) = ReferenceEvaluator(str(path)).run(None, given)
    return torch.from_numpy(output)
