"""The wheel, built and used in an environment that has nothing else of this project."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import lightning_merge
from lightning_merge.presets import presets

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*words, cwd):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The programs of an environment with the wheel; the other packages are this one's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    inside = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    # A path named in a .pth file is searched, but its own .pth files, an editable installation of
    # this project among them, are not read.
    others = Path(inside["purelib"]) / "others.pth"
    others.write_text(sysconfig.get_path("purelib"))
    python = Path(inside["scripts"]) / "python"
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    return Path(inside["scripts"])


@pytest.mark.slow
def test_the_metadata(wheel):
    with zipfile.ZipFile(wheel) as content:
        (name,) = [one for one in content.namelist() if one.endswith(".dist-info/METADATA")]
        text = content.read(name).decode()
    assert f"\nVersion: {lightning_merge.__version__}\n" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [one for one in links if not one.startswith("https://")] == []
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    home = f"{PROJECT['urls']['Repository']}/main/".replace(
        "github.com", "raw.githubusercontent.com"
    )
    assert images
    assert all((ROOT / one.removeprefix(home)).is_file() for one in images)
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", text, re.M))
    assert extras == set(PROJECT["optional-dependencies"])


@pytest.mark.slow
def test_the_wheels_own_package_is_imported(programs, tmp_path):
    where = run(
        programs / "python",
        "-c",
        "import lightning_merge, torch; print(lightning_merge.__file__)",
        cwd=tmp_path,
    )
    assert Path(where.strip()).is_relative_to(programs.parent)
    assert run(programs / "lightning-merge", "--version", cwd=tmp_path).strip() == (
        lightning_merge.__version__
    )


@pytest.mark.slow
def test_the_presets_are_the_repositorys(programs, tmp_path):
    listed = run(programs / "lightning-merge", "list", "presets", cwd=tmp_path)
    assert set(re.findall(r"preset:(\S+)", listed)) == set(presets())
    (folder,) = programs.parent.rglob("lightning_merge/configs")
    for name, path in presets().items():
        assert (folder / f"{name}.yaml").read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_networks_are_trained_and_merged_from_another_folder(programs, tmp_path):
    program = programs / "lightning-merge"
    few = ("--trainer.limit_train_batches", 2, "--trainer.limit_test_batches", 1)
    for seed in (0, 1):
        run(
            *(program, "fit", "-c", "preset:fit/digits", "--seed_everything", seed),
            *("--trainer.default_root_dir", f"run{seed}", "--trainer.max_epochs", 1, *few),
            cwd=tmp_path,
        )
    checkpoints = [*tmp_path.glob("run?/**/*-last.ckpt")]
    assert len(checkpoints) == 2
    run(
        *(program, "merge", "-c", "preset:merge/digits", "--output", "merged", *few),
        *("--checkpoints", *checkpoints),
        cwd=tmp_path,
    )
    assert (tmp_path / "merged" / "merged.ckpt").is_file()
