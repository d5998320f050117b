"""Entry points of other packages, found by their installed metadata."""

import pytest
import torch
from tiny_contexts import Points, trained

from lightning_merge import compare
from lightning_merge.cli import main
from lightning_merge.recipe.aggregate import aggregates
from lightning_merge.registry import Registry

PACKAGE = '''
from lightning_merge import Average
from lightning_merge.recipe.aggregate import aggregates

@aggregates.register("Halves", paper="Others 2010")
class HalvesOfAnother(Average):
    """From another package."""
'''


def install(folder, monkeypatch, value, text):
    """An installed package of one module, whose metadata name an entry point."""
    if text is not None:
        (folder / f"{value.partition(':')[0]}.py").write_text(text)
    about = folder / "another_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: another-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[lightning_merge.aggregates]\nhalves = {value}\n")
    monkeypatch.syspath_prepend(folder)
    # Built-in ones first, or they would be gone afterwards.
    aggregates.load()
    monkeypatch.setattr(aggregates, "_loaded", False)
    monkeypatch.setattr(aggregates, "_entries", dict(aggregates._entries))


def test_another_packages_entry_point_is_loaded(tmp_path, monkeypatch, capsys):
    networks = [trained(seed) for seed in range(2)]
    install(tmp_path, monkeypatch, "another_package:HalvesOfAnother", PACKAGE)
    main(["list", "aggregates"])
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "Halves" in one]
    assert line.split() == ["Halves", "From", "another", "package.", "Others", "2010"]
    recipe = {"name": "Others", "aggregate": "HalvesOfAnother"}
    result = compare(networks, [recipe], Points(), progress=False)
    mean = (networks[0].net[0].weight + networks[1].net[0].weight) / 2
    torch.testing.assert_close(result.merged["Others"].net[0].weight, mean)


@pytest.mark.parametrize(
    ("value", "text"),
    [("no_such_package:Halves", None), ("broken_package:Halves", "raise ValueError('broken')")],
)
def test_an_entry_point_that_cannot_be_imported_is_named(
    tmp_path, monkeypatch, capsys, value, text
):
    install(tmp_path, monkeypatch, value, text)
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            main(["list", "aggregates"])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"entry point 'halves' of lightning_merge.aggregates ({value})" in line
        assert "remove the package" in line


def test_a_registry_of_ones_own_kind():
    """What another package does for kinds of its own."""
    kinds: Registry[object] = Registry("own_kinds")
    kinds.register("b", needs="much")(lambda: None)
    kinds.register("A")(len)
    assert [entry.name for entry in kinds] == ["A", "b"]
    assert kinds.get("A").value is len
    assert kinds.get("b").needs == "much"
