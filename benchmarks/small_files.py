"""Small whole files of every kind that is read, the same in every run."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from lightning_merge.study.store import Store


def state_dicts() -> dict[str, bytes]:
    """State dicts as torch and safetensors write them, and shards with their index."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "norm.running_var": torch.rand(4, generator=generator),
        "norm.num_batches_tracked": torch.tensor(7),
        "half.weight": torch.randn(3, 4, generator=generator).half(),
        "brain.weight": torch.randn(3, 4, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 3),
    }
    mixed = {"state_dict": {**state, "steps": torch.arange(5)}, "epoch": 3, "arch": ["resnet", 2.5]}
    first = {name: state[name] for name in list(state)[:3]}
    second = {name: state[name] for name in list(state)[3:]}
    where = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    where |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    return {
        "plain.pt": torch_bytes(state),
        "nested.pth": torch_bytes(mixed),
        "legacy-plain.pt": torch_bytes(state, _use_new_zipfile_serialization=False),
        "legacy-nested.pt": torch_bytes(mixed, _use_new_zipfile_serialization=False),
        "plain.safetensors": save(state, {"format": "pt"}),
        "model-00001-of-00002.safetensors": save(first),
        "model-00002-of-00002.safetensors": save(second),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }


def lightning_checkpoints() -> dict[str, bytes]:
    """Checkpoints that describe this package's own modules."""
    from lightning_merge import ImageClassifier

    made = {}
    for name, arguments in (
        (
            "linear",
            {"model": "linear_classifier", "in_chans": 1, "model_kwargs": {"img_size": 4}},
        ),
        (
            "deep",
            {
                "model": "resnet20_cifar",
                "num_classes": 3,
                "model_kwargs": {"depth": 1, "width": 2},
                "metrics": ["accuracy"],
            },
        ),
    ):
        torch.manual_seed(0)
        module = ImageClassifier(**arguments)  # type: ignore[arg-type]
        content = {
            "epoch": 1,
            "pytorch-lightning_version": "2.6.6",
            "state_dict": module.state_dict(),
            "hyper_parameters": {**dict(module.hparams), "_class_path": None},
        }
        content["hyper_parameters"].pop("_class_path")
        made[f"{name}.ckpt"] = torch_bytes(content)
    return made


def torch_bytes(content: Any, **how: Any) -> bytes:
    """What `torch.save` writes."""
    out = io.BytesIO()
    torch.save(content, out, **how)
    return out.getvalue()


def images() -> dict[str, bytes]:
    """Small images of many formats and modes."""
    from PIL import Image

    draw = np.random.default_rng(0)
    colour = draw.integers(0, 256, (12, 9, 3), dtype=np.uint8)
    grey = colour[:, :, 0]
    deep = draw.integers(0, 65536, (12, 9), dtype=np.uint16)
    fractions = draw.random((12, 9), dtype=np.float32)
    alpha = np.dstack([colour, grey])
    exif = Image.Exif()
    exif[0x0112] = 6
    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "colour.png": (Image.fromarray(colour), {}),
        "deep.png": (Image.fromarray(deep), {}),
        "alpha.png": (Image.fromarray(alpha), {"exif": exif.tobytes()}),
        "palette.png": (Image.fromarray(colour).quantize(16), {"transparency": 3}),
        "colour.jpeg": (Image.fromarray(colour), {"exif": exif.tobytes(), "quality": 80}),
        "grey.jpeg": (Image.fromarray(grey), {"progressive": True}),
        "cmyk.jpeg": (Image.fromarray(colour).convert("CMYK"), {}),
        "colour.tiff": (Image.fromarray(colour), {}),
        "deep.tiff": (Image.fromarray(deep), {}),
        "fractions.tiff": (Image.fromarray(fractions), {}),
        "packed.tiff": (Image.fromarray(colour), {"compression": "tiff_lzw"}),
        "palette.gif": (Image.fromarray(colour).quantize(16), {}),
        "grey.bmp": (Image.fromarray(grey), {}),
        "colour.webp": (Image.fromarray(colour), {"lossless": True}),
    }
    return {name: _image_bytes(image, name, how) for name, (image, how) in made.items()}


def _image_bytes(image: Any, name: str, how: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    image.save(out, name.rpartition(".")[2], **how)
    return out.getvalue()


_ROW = {
    **{"method": "Mean", "kind": "merge", "seed": 0, "accuracy": 0.9, "seconds": 1.5},
    **{"parameters": 650, "models": 1, "test_examples": 360, "pool_size": 2},
}


def results_files(which: str) -> dict[str, bytes]:
    """Results: of the `store`, of `merge`, and of `compare` and `study` for `plot`."""
    if which == "store":
        result = {"row": _ROW, "digest": "0" * 64, "settings": {"lr": 0.1}}
        with tempfile.TemporaryDirectory() as room:
            Store(room).put("key", result)
            return {
                "result.json": (Path(room) / "key" / "result.json").read_bytes(),
                "schema.json": (Path(room) / "schema.json").read_bytes(),
            }
    if which == "merge":
        content = {
            "config": {"recipe": {"name": "Mean"}, "data": {"class_path": "DigitsDataModule"}},
            "ingredients": {"a.ckpt": "0" * 64, "b.ckpt": "1" * 64},
            "measurement": {"accuracy": 0.9, "loss": 0.3},
            "split_hash": "2" * 64,
            "command": "python -m lightning_merge merge",
            "versions": {"torch": "2.11"},
        }
        return {"result.json": json.dumps(content).encode()}
    rows = [
        {**_ROW, "accuracy_sd": 0.01, "runs": 2},
        {**_ROW, "method": "Ensemble", "kind": "ensemble", "accuracy": 0.95, "pool_size": 3},
        {**_ROW, "method": "Ingredient 1", "kind": "ingredient", "accuracy": 0.8},
    ]
    steps = {"alpha": [0, 0.5, 1], "loss": [0.2, 1.5, 0.3], "accuracy": [0.9, 0.3, 0.8]}
    scaled = {"pool_size": 2, "factor": [0.5, 1, 2], "accuracy": [0.5, 0.9, 0.7]}
    content = {
        "title": "Study",
        "network": "linear",
        "ensemble": "Ensemble",
        "summary": rows,
        "measurements": rows,
        "lines": [{"name": "plain", **steps}, {"name": "Weights + batchnorm", **steps}],
        "magnitudes": [{"name": row["method"], "kind": row["kind"], **scaled} for row in rows],
    }
    return {"results.json": json.dumps(content).encode()}


def study_files() -> dict[str, bytes]:
    """What a study notes of itself."""
    content = {
        "title": "Study",
        "seeds": [0],
        "recipes": [{"name": "Mean", "aggregate": "Average"}],
        "pool_sizes": [2],
        "trainer": {"max_epochs": 1},
        "data": {"class_path": "DigitsDataModule"},
    }
    return {"study.json": json.dumps(content).encode()}


def task_files() -> dict[str, bytes]:
    """What `tasks` notes of itself, and its results."""
    data = {"class_path": "DigitsDataModule"}
    content = {
        "title": "Tasks",
        "seeds": [0],
        "tasks": [{"name": "a", "data": data}, {"name": "b", "data": data}],
        "recipes": [{"name": "Mean", "aggregate": "Average"}],
        "model": {"class_path": "ImageClassifier"},
    }
    results = {
        "ingredients": {"0" * 16: {"task": "Pre-trained", "seed": 0, "digest": "1" * 64}},
        "methods": [{"method": "Mean", "kind": "merge", "seed": 0, "seconds": 1.0}],
    }
    return {
        "tasks.json": json.dumps(content).encode(),
        "results.json": json.dumps(results).encode(),
    }


def label_lists() -> dict[str, bytes]:
    """The lists of CelebA and of ChestX-ray14."""
    names = [f"{number:06d}.jpg" for number in range(1, 7)]
    marks = [" ".join("1" if (n + k) % 3 else "-1" for k in range(40)) for n in range(6)]
    attributes = [
        "6",
        "an attribute each",
        *(f"{a} {b}" for a, b in zip(names, marks, strict=True)),
    ]
    parts = [f"{name} {number % 3}" for number, name in enumerate(names)]
    rows = [
        f"{number:08d}_000.png,{('No Finding', 'Mass|Edema')[number % 2]}" for number in range(8)
    ]
    files = [f"{number:08d}_000.png" for number in range(8)]
    texts = {
        "list_attr_celeba.txt": attributes,
        "list_eval_partition.txt": parts,
        "Data_Entry_2017.csv": ["Image Index,Finding Labels", *rows],
        "train_val_list.txt": [*files[:4], files[7]],
        "test_list.txt": files[4:7],
    }
    return {name: ("\n".join(lines) + "\n").encode() for name, lines in texts.items()}
