"""The rooms of the package: a file imports from its own room and from those below it."""

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_merge"
FLOORS = (
    # ground: whatever is not in a room
    ("trace",),
    ("symmetry",),
    ("align", "aggregate", "recalibrate"),
    ("networks", "data"),
    ("modules", "callbacks", "plots", "analysis"),
    ("recipe",),
    ("measure",),
    ("study",),
    ("report",),
    ("verbs", "study_verbs", "model_folder"),
    ("commands", "cli", "__main__"),
)
# Which of the rooms on one floor may be imported by which.
BESIDE = {
    ("callbacks", "modules"),
    ("recalibrate", "align"),
    ("plots", "analysis"),
    ("analysis", "modules"),
    ("study_verbs", "verbs"),
    ("__main__", "cli"),
    ("cli", "commands"),
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def floor(room):
    return next((i for i, rooms in enumerate(FLOORS, start=1) if room in rooms), 0)


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported(path):
    """The modules of this package that a file imports anywhere, but for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_merge"):
            names = [f"{node.module}.{one.name}" for one in node.names]
            yield from names if node.module == "lightning_merge" else [node.module]
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.startswith("lightning_merge."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_from_above(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imported(path):
        room = room_of(module)
        lower = floor(room) < floor(own) or (floor(room) == floor(own) == 0)
        assert room == own or lower or (own, room) in BESIDE, f"{own} imports {module}"


def test_no_file_has_another_ones_name():
    names = Counter(path.name for path in FILES if path.name not in ("__init__.py", "__main__.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_holds_two_ideas():
    long = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def test_no_room_is_more_than_a_seventh_of_the_house():
    lines: Counter[str] = Counter()
    for path in FILES:
        own = path.relative_to(PACKAGE).parts[0]
        lines[own] += len(path.read_text(encoding="utf-8").splitlines())
    assert {name: n for name, n in lines.items() if n > lines.total() / 7} == {}
