"""CelebA: a tiny one, written in its layout."""

import numpy as np
import torch
from made_folders import (
    normalised,
    refused,
    write_celeba,
)
from PIL import Image

from lightning_merge.data import (
    CelebADataModule,
)
from lightning_merge.data.sets.celeba import ATTRIBUTES
from lightning_merge.errors import ConfigError


def test_celeba_with_all_attributes_and_with_one(tmp_path):
    values, parts = write_celeba(tmp_path, ATTRIBUTES)
    every = CelebADataModule(str(tmp_path), image_size=178, augment=False)
    assert (every.task, every.num_classes, every.class_names[31]) == ("multilabel", 40, "Smiling")
    smiling = CelebADataModule(str(tmp_path), attribute="Smiling", image_size=178)
    assert (smiling.task, smiling.num_classes) == ("multiclass", 2)
    assert smiling.class_names == ["not Smiling", "Smiling"]
    for dm in (every, smiling):
        dm.prepare_data()
        dm.setup("fit")
        for number, data in enumerate((dm.train_set, dm.val_set, dm.test_set)):
            expected = (values[parts == number] + 1) // 2
            if dm is smiling:
                expected = expected[:, 31]
            assert data.targets.tolist() == expected.tolist()
    assert every.test_set.targets.dtype == torch.float32
    assert smiling.test_set.targets.dtype == torch.int64
    face = np.asarray(Image.open(tmp_path / "celeba/img_align_celeba/000007.jpg"))
    torch.testing.assert_close(every.val_set[0][0], normalised(face[20:198]), rtol=0, atol=1e-5)


def test_celeba_says_what_is_missing_or_damaged(tmp_path):
    message = refused(lambda: CelebADataModule(str(tmp_path)).setup("fit"))
    assert "img_align_celeba is missing" in message
    assert "mmlab.ie.cuhk.edu.hk" in message
    write_celeba(tmp_path, ATTRIBUTES)
    folder = tmp_path / "celeba"
    attributes = (folder / "list_attr_celeba.txt").read_text()
    partition = (folder / "list_eval_partition.txt").read_text()
    for name, content, words in (
        ("list_attr_celeba.txt", None, "is missing"),
        ("list_attr_celeba.txt", attributes[:-9], "is damaged"),
        ("list_eval_partition.txt", partition.replace("0\n", "zero\n", 1), "is damaged"),
        ("list_eval_partition.txt", partition[13:], "name different images"),
    ):
        before = (folder / name).read_text()
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
        message = refused(lambda: CelebADataModule(str(tmp_path)).setup("fit"))
        assert name in message
        assert words in message
        (folder / name).write_text(before)
    assert "'Happy' is unknown" in refused(lambda: CelebADataModule(attribute="Happy"), ConfigError)


def test_celeba_failed_download_says_what_to_get(tmp_path, monkeypatch):
    from torchvision.datasets import CelebA

    def download(self):
        raise RuntimeError("quota\nexceeded")

    monkeypatch.setattr(CelebA, "download", download)
    dm = CelebADataModule(str(tmp_path), download=True)
    message = refused(dm.prepare_data)
    assert "quota exceeded" in message
    assert "img_align_celeba.zip" in message
    write_celeba(tmp_path, ATTRIBUTES)
    dm.prepare_data()
