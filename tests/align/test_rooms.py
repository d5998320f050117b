"""The rooms of the package `align`, each on top of the one before."""

import ast
from pathlib import Path

import pytest

import lightning_merge.align as align

ROOT = Path(align.__file__).parent
ORDER = ("matching", "zipping")


def imported(file: Path) -> set[str]:
    tree = ast.walk(ast.parse(file.read_text()))
    return {node.module for node in tree if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize("room", ORDER)
def test_no_room_imports_from_one_above_it(room: str) -> None:
    above = tuple(f"lightning_merge.align.{name}" for name in ORDER[ORDER.index(room) + 1 :])
    files = sorted((ROOT / room).rglob("*.py"))
    assert len(files) > 2
    wrong = {file.name: [m for m in imported(file) if m.startswith(above)] for file in files}
    assert not any(wrong.values()), wrong
    assert all("lightning_merge.align" not in imported(file) for file in files)


def test_every_file_has_a_name_of_its_own() -> None:
    names = [file.name for file in ROOT.rglob("*.py") if file.name != "__init__.py"]
    assert len(names) == len(set(names))
