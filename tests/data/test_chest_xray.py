"""ChestX-ray14: a tiny one, written in its layout."""

import os
import shutil

import numpy as np
import pytest
from made_folders import (
    pixels,
    refused,
    write_chest_xray,
)

from lightning_merge.data import (
    ChestXrayDataModule,
)
from lightning_merge.data.sets.chest_xray import LABELS


@pytest.mark.parametrize("table", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
def test_chest_xray(tmp_path, table):
    findings = write_chest_xray(tmp_path, table=table)
    dm = ChestXrayDataModule(str(tmp_path), image_size=64, augment=False)
    described = (dm.task, dm.num_classes, dm.in_chans, dm.horizontal_flip)
    assert described == ("multilabel", 14, 1, False)
    dm.setup("fit")
    names = {
        "train": [name for name in findings if int(name[:8]) <= 18 and int(name[:8]) % 8 != 7],
        "val": [name for name in findings if int(name[:8]) in (7, 15)],
        "test": [name for name in findings if int(name[:8]) > 18],
    }
    assert sum(map(len, names.values())) == len(findings)
    assert any(findings[name] == [] for name in names["train"])
    for split, data in (("train", dm.train_set), ("val", dm.val_set), ("test", dm.test_set)):
        assert len(data) == len(names[split]) > 0
        for position, name in enumerate(names[split]):
            image, target = data[position]
            present = [LABELS[label] for label in target.nonzero().flatten()]
            assert sorted(present) == sorted(findings[name])
            expected = (pixels(name, shape=(64, 64)) / 255 - 0.449) / 0.226
            np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-5)


def test_chest_xray_labels_are_those_of_chestmnist():
    from medmnist import INFO

    known = [INFO["chestmnist"]["label"][str(label)] for label in range(14)]
    ours = [label.lower().replace("pleural_thickening", "pleural") for label in LABELS]
    assert ours == known


def test_chest_xray_says_what_is_missing_or_damaged(tmp_path):
    message = refused(lambda: ChestXrayDataModule(str(tmp_path)).setup("fit"))
    assert "Data_Entry_2017.csv is missing" in message
    assert "nihcc.app.box.com" in message
    assert "chestmnist" in message
    findings = write_chest_xray(tmp_path)
    table = (tmp_path / "Data_Entry_2017.csv").read_text()
    first = next(iter(findings))
    for name, content, words in (
        ("test_list.txt", None, "is missing"),
        ("train_val_list.txt", "hello there\n", "is damaged"),
        ("train_val_list.txt", os.fsdecode(b"\xff\xfe\n"), "is damaged"),
        ("Data_Entry_2017.csv", table.replace("Mass", "Moss"), "is damaged"),
        ("Data_Entry_2017.csv", table.replace("Finding", "Found"), "is damaged"),
        ("Data_Entry_2017.csv", table.replace(first, "x.png"), f"does not name '{first}'"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(os.fsencode(content))
        message = refused(lambda: ChestXrayDataModule(str(tmp_path)).setup("fit"))
        assert name in message
        assert words in message
        (tmp_path / name).write_text(before)
    shutil.rmtree(tmp_path / "images_002")
    message = refused(lambda: ChestXrayDataModule(str(tmp_path)).setup("fit"))
    assert f"{first} is missing, and 23 more" in message
