"""The engine and the sets: who imports whom, and under which names configurations find them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

import lightning_merge.data
from lightning_merge.data import ClassificationDataModule

ROOM = Path(lightning_merge.data.__file__).parent
ENGINE = sorted(path for path in ROOM.glob("*.py") if path.name != "__init__.py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.stem)
def test_the_engine_imports_no_set(path):
    assert not [name for name in imported(path) if name.startswith("lightning_merge.data.sets")]


def test_every_set_is_found_by_its_short_and_its_public_name():
    names = [
        name
        for name in lightning_merge.data.__all__
        if name.endswith("DataModule") and name != ClassificationDataModule.__name__
    ]
    assert len(names) == 11
    for name in names:
        for path in (name, f"lightning_merge.data.{name}", f"lightning_merge.{name}"):
            parser = ArgumentParser(exit_on_error=False)
            parser.add_subclass_arguments(LightningDataModule, "data", required=True)
            config = {"class_path": path, "init_args": {"batch_size": 7}}
            needed = {"HuggingFaceDataModule": {"path": "x/y", "num_classes": 2}}
            needed["VisionTaskDataModule"] = {"name": "dtd"}
            config["init_args"] |= needed.get(name, {})
            parsed = parser.parse_object({"data": config})
            assert parsed.data.class_path.endswith(f".{name}")
            dumped = yaml.safe_load(parser.dump(parsed))["data"]
            assert dumped["class_path"] in (
                f"lightning_merge.{name}",
                f"lightning_merge.data.{name}",
            )
            assert dumped["init_args"]["corruption_parameters"] == "nearest"


def test_importing_the_room_imports_no_heavy_reader():
    code = (
        "import sys, lightning_merge.data; "
        "print([name for name in ('torchvision', 'medmnist', 'datasets', 'sklearn', 'skimage') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(found.stdout.strip().splitlines()[-1]))
    assert not loaded & {"medmnist", "datasets", "skimage"}
