"""`plot embedding` from checkpoints and data modules; from a folder see the tests of `tasks`."""

import pytest
import yaml
from made_checkpoints import write_ingredient
from made_data import classes, write_medmnist

from lightning_merge.cli import main


@pytest.fixture
def config(tmp_path):
    write_medmnist(tmp_path, "breastmnist", (28, 28), classes(2))
    medical = {"name": "breastmnist", "root": str(tmp_path), "resize": 8}
    data = [
        {"class_path": "DigitsDataModule"},
        {"name": "breast", "class_path": "MedMNISTDataModule", "init_args": medical},
    ]
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": data, "method": "pca"}))
    kwargs = {"depth": 1}
    for seed in range(2):
        write_ingredient(tmp_path / f"{seed}.ckpt", seed, model_kwargs=kwargs)
    return ["-c", str(tmp_path / "data.yaml"), "--examples", "50"]


def test_as_many_images_of_each_set_under_each_network(config, tmp_path, capsys, monkeypatch):
    seen = {}
    from lightning_merge.commands import plot_embedding as command

    def looked(panels, *words):
        seen.update(panels=panels, words=words)
        return drawn(panels, *words)

    drawn = command.plot_embedding
    monkeypatch.setattr(command, "plot_embedding", looked)
    paths = [str(tmp_path / f"{seed}.ckpt") for seed in range(2)]
    main(["plot", "embedding", *paths, *config])
    for kind in ("png", "svg"):
        assert (tmp_path / f"0-embedding.{kind}").stat().st_size > 5000
    assert list(seen["panels"]) == ["0", "1"]
    # As many as the smaller set has, not as the option says.
    sizes = {len(points) for panel in seen["panels"].values() for points in panel.values()}
    assert len(sizes) == 1
    (count,) = sizes
    assert count < 50
    title, caption, explained = seen["words"]
    assert "2 data sets as 2 networks" in title
    assert f"{count} test images of each set" in caption
    assert set(explained) == {"0", "1"}
    assert list(seen["panels"]["0"]) == ["Digits", "breast"]
    with pytest.raises(SystemExit) as stopped:
        main(["plot", "embedding", *paths, *config])
    assert stopped.value.code == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0.ckpt"], "which data sets?"),
        (["0.ckpt", "--show", "[a]"], "of a folder"),
        ([".", "--data", "[{class_path: DigitsDataModule}]"], "says itself"),
        ([".", "--examples", "5"], "no folder that `tasks` wrote"),
        (
            ["0.ckpt", "0.ckpt", "--data", "[{class_path: DigitsDataModule}]"],
            "each checkpoint once",
        ),
        (["0.ckpt", "--data", "[{class_path: A}, {class_path: A}]"], "`name` of its own"),
    ],
)
def test_what_is_wrong_is_reported_in_a_line(config, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["plot", "embedding", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
