import subprocess
import sys

import pytest

import lightning_merge


@pytest.mark.parametrize("name", lightning_merge.__all__)
def test_every_public_name_is_there_and_documented(name):
    found = getattr(lightning_merge, name)
    assert found.__name__ == name
    assert found.__module__.startswith("lightning_merge.")
    assert len(found.__doc__ or "") > 30


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="averge"):
        lightning_merge.averge  # noqa: B018


def test_a_user_has_the_real_types(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from lightning_merge import MergeModule\nreveal_type(MergeModule)\n"
        "from lightning_merge import NoSuchName\n"
    )
    others = ",".join(f"{name}.*" for name in ("torch", "lightning", "torchmetrics", "numpy"))
    # Without reading torch's own types it takes a third of the time.
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nfollow_imports = silent\n[mypy-{others}]\nfollow_imports = skip\n"
    )
    command = [sys.executable, "-m", "mypy", "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "merge_module.MergeModule" in done.stdout
    assert 'has no attribute "NoSuchName"' in done.stdout
    assert set(lightning_merge.__all__) <= set(dir(lightning_merge))
