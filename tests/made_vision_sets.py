"""The sets that CLIP is fine-tuned on, of a few small images, in their official layouts."""

import hashlib

import numpy as np
from made_folders import pixels, write_image

SCENES = ["abbey", "airplane_cabin", "church/indoor", "church/outdoor"]


def write_sun397(root, shape=(24, 32, 3), train=2, test=1):
    """Scenes in folders of their first letters, two lists, and images that no list has."""
    names = sorted([*SCENES, *(f"place_{number:03d}" for number in range(393))])
    folder = root / "SUN397"
    made, lists = {"train": [], "test": []}, {"train": [], "test": []}
    for label, name in enumerate(names):
        for number in range(train + test + (label < 3)):
            file = f"/{name[0]}/{name}/sun_{name.replace('/', '')}{number}.jpg"
            image = write_image(folder / file[1:], pixels(file, shape=shape))
            if number < train + test:
                split = "train" if number < train else "test"
                lists[split].append(file)
                made[split].append((label, image))
    folder.joinpath("ClassName.txt").write_text("".join(f"/{n[0]}/{n}\n" for n in names))
    for split, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        folder.joinpath(file).write_text("\r\n".join(lists[split]) + "\r\n")
    return made


def write_stanford_cars(root, shape=(32, 40, 3), count=1):
    """Images in two folders, and MATLAB files that label them from 1, in no order."""
    from scipy.io import savemat

    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array([f"Maker Model {number} 20{number % 13:02d}" for number in range(196)], object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names[None]})
    made = {}
    for split, file in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        labels = np.random.default_rng(len(split)).permutation(np.repeat(np.arange(196), count))
        rows, made[split] = [], []
        for number, label in enumerate(labels):
            name = f"{number + 1:05d}.jpg"
            path = folder / f"cars_{split}" / name
            made[split].append((int(label), write_image(path, pixels(split, name, shape=shape))))
            rows.append((1, 1, 9, 9, np.uint8(label + 1), name))
        fields = [
            (f, object) for f in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
        ]
        savemat(folder / file, {"annotations": np.array([rows], dtype=fields)})
    return made


def write_resisc45(root, shape=(32, 32, 3), counts=(("train", 2), ("val", 1), ("test", 1))):
    """A folder a class, and a list of file names a split."""
    names = ["airplane", "golf_course", "sea_ice", *(f"scene_{number:02d}" for number in range(42))]
    names = sorted(names)
    folder, made, number = root / "resisc45", {}, 0
    for split, count in counts:
        made[split], files = [], []
        for label, name in enumerate(names):
            for _ in range(count):
                number += 1
                file = f"{name}_{number:03d}.jpg"
                path = folder / "NWPU-RESISC45" / name / file
                made[split].append((label, write_image(path, pixels(file, shape=shape))))
                files.append(file)
        (folder / f"resisc45-{split}.txt").write_text("\n".join(files) + "\n")
    return made


def write_dtd(root, shape=(40, 32, 3)):
    """Folders of textures, and lists of the first partition."""
    names = sorted(["banded", "polka-dotted", *(f"texture{number:02d}" for number in range(45))])
    folder, made = root / "dtd" / "dtd", {}
    (folder / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        made[split], lines = [], []
        for label, name in enumerate(names):
            file = f"{name}/{name}_{split}.jpg"
            image = write_image(folder / "images" / file, pixels(file, shape=shape))
            made[split].append((label, image))
            lines.append(file)
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(lines) + "\n")
    return made


def write_svhn(root, monkeypatch, counts=(("train", 40), ("test", 20))):
    """MATLAB files in which 10 stands for the digit 0; their checksums replace the official."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    folder, made, listed = root / "svhn", {}, dict(SVHN.split_list)
    folder.mkdir()
    for split, count in counts:
        images = [pixels(split, number, shape=(32, 32, 3)) for number in range(count)]
        labels = [(3 * number) % 10 for number in range(count)]
        path = folder / f"{split}_32x32.mat"
        y = np.array([[label or 10] for label in labels], dtype=np.uint8)
        savemat(path, {"X": np.stack(images, -1), "y": y})
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        listed[split] = [listed[split][0], path.name, md5]
        made[split] = list(zip(labels, images, strict=True))
    monkeypatch.setattr(SVHN, "split_list", listed)
    return made


def write_gtsrb(root, shape=(30, 36, 3), train=2, test=1):
    """Folders of signs, and a table of those to test on."""
    folder, made = root / "gtsrb", {"train": [], "test": []}
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(43):
        for number in range(train):
            path = folder / f"GTSRB/Training/{label:05d}/00000_{number:05d}.ppm"
            made["train"].append((label, write_image(path, pixels(label, number, shape=shape))))
        path.with_name(f"GT-{label:05d}.csv").write_text("Filename\n")
    for number in range(43 * test):
        name, label = f"{number:05d}.ppm", (7 * number) % 43
        path = folder / "GTSRB/Final_Test/Images" / name
        made["test"].append((label, write_image(path, pixels("test", name, shape=shape))))
        rows.append(f"{name};{shape[1]};{shape[0]};1;1;9;9;{label}")
    (folder / "GT-final_test.csv").write_text("\n".join(rows) + "\n")
    return made


def write_eurosat(root, shape=(64, 64, 3), count=10):
    """A folder a class, undivided."""
    names = "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop"
    made = []
    for label, name in enumerate([*names.split(), "Residential", "River", "SeaLake"]):
        for number in range(count):
            path = root / "eurosat" / "2750" / name / f"{name}_{number + 1}.jpg"
            made.append((label, write_image(path, pixels(name, number, shape=shape))))
    return {"all": made}
