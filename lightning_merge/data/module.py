"""What all data modules share: splits, held-out part, normalisation, augmentation, loaders."""

import copy
from abc import ABC, abstractmethod
from typing import Any, Literal, Self

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_merge.data.adapted import adapted
from lightning_merge.data.corruption_parameters import ParameterSet, check_parameters
from lightning_merge.data.corruptions import Corruption
from lightning_merge.data.image_dataset import ImageDataset
from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.normalisation import Normalisation, adapted_normalisation
from lightning_merge.data.resident_images import default_device, resident, resident_loader
from lightning_merge.data.splits import (
    Indices,
    check_split,
    choose,
    digest_of_examples,
    digest_of_split,
    warn_of_none_held_out,
)
from lightning_merge.errors import ConfigError

Task = Literal["multiclass", "binary", "multilabel"]

_STATISTICS = {"clip": Normalisation.clip, "imagenet": Normalisation.imagenet}


class ClassificationDataModule(LightningDataModule, ABC):
    """Labelled images, and who sees which of them.

    A subclass reads the files in `load_splits`, downloads in `prepare_data`, and sets
    `num_classes`, `in_chans`, `image_size`, `task` and `class_names` when constructed.
    Small sets are in memory, where under DDP each process has its own copy; large ones
    give `Images` that read from disk, and are divided by their targets alone.

    The order is: a held-out part is taken off train, the rest is divided into parts, and
    from this module's part (or, without one, from all the rest) come the examples. All
    parts, and the held-out part, are the same wherever `split_seed` is the same.

    Batches are `(image, target)`: float32 `(N, C, H, W)`, normalised by published
    statistics or else those of the whole train split, and long `(N,)`, or float `(N, L)` where
    the task is multi-label.

    Args:
        batch_size: Images in a training batch.
        split: `"all"`, `"random"`, `"80-20"`, `"dirichlet"` or `"classes"`, see `split_indices`.
        part: Which of the parts to train on, from 0; None for all of them together.
        parts: How many parts the split makes.
        split_seed: Determines held-out part, parts and examples per class.
        examples_per_class: Train on so many of each class only (nested: more include fewer).
        held_out: Fraction of train held out for selection: it is what `val_dataloader`
            gives. With 0 that is the official validation split, or nothing where there is none.
        augment: Whether training images are shifted at random by up to an eighth of their
            size and, where left and right do not matter, mirrored.
        num_workers: Processes that load; 0 is fastest for small images.
        eval_batch_size: Images in any other batch; None for `batch_size`.
        pin_memory: Whether batches are put where a GPU copies them faster.
        corruption: A corruption of the test images (only), such as `gaussian_noise`, see
            `Corruption`; None for the images as they are.
        severity: Of the corruption, 1 to 5.
        corruption_parameters: Whose parameters corruptions have, see `Corruption`.
        resize: Bring all images to so many pixels each way, so that sets of different sizes
            go into one network; None for their own. Corruptions are done after it.
        channels: 3 for grey images as colour ones, 1 for colour images as grey ones; None for
            their own.
        normalise: Normalise by the statistics that a pre-trained network was trained with, `clip`
            or `imagenet`; None for the set's own.
        test_examples: Test on so many of the test images only, drawn at random (the same ones
            whatever `split_seed`); None for all.
        on_device: Keep the images as bytes on the device that computes (the Trainer's, else the
            machine's accelerator), and make each batch there: for sets of CIFAR's size, on a GPU.
            The batches are those of the CPU, whatever the device. `pin_memory` has no meaning then.

    Attributes:
        num_classes: Classes, or labels where the task is multi-label.
        task: `"multiclass"`, `"binary"` or `"multilabel"`.
        class_names: One name per class or label.
        train_set: After `setup`: the training examples, augmented.
        val_set: After `setup`: the examples for selection, or None.
        test_set: After `setup`: the official test examples.
        split_hash: After `setup`: SHA-256 of the train indices, the held-out indices and
            the labels: equal exactly where the same examples were trained on.

    Raises:
        ConfigError: If an argument is out of range.
    """

    #: Whether a mirrored image still shows the same class.
    horizontal_flip: bool = False
    #: Published statistics; None to compute them from the whole train split.
    published_normalisation: Normalisation | None = None
    #: Whose sentences for class names suit, of those in `prompts.yaml`.
    prompt_set: str = "photo"

    num_classes: int
    task: Task = "multiclass"
    class_names: list[str]
    train_set: ImageDataset
    val_set: ImageDataset | None
    test_set: ImageDataset
    normalisation: Normalisation
    split_hash: str

    def __init__(
        self,
        batch_size: int = 128,
        split: str = "all",
        part: int | None = None,
        parts: int = 2,
        split_seed: int = 0,
        examples_per_class: int | None = None,
        held_out: float = 0.1,
        augment: bool = True,
        num_workers: int = 0,
        eval_batch_size: int | None = None,
        pin_memory: bool = False,
        corruption: str | None = None,
        severity: int = 3,
        resize: int | None = None,
        channels: Literal[1, 3] | None = None,
        test_examples: int | None = None,
        normalise: Literal["clip", "imagenet"] | None = None,
        corruption_parameters: ParameterSet = "nearest",
        on_device: bool = False,
    ) -> None:
        super().__init__()
        check_split(split, parts, split_seed)
        if part is not None and not 0 <= part < parts:
            raise ConfigError(
                f"part is {part} of {parts}: choose 0 to {parts - 1}, or none for all"
            )
        if not 0 <= held_out < 1:
            raise ConfigError(f"held_out is {held_out}: choose a fraction from 0 to below 1")
        for name, value in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("examples_per_class", examples_per_class),
            ("resize", resize),
            ("test_examples", test_examples),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: choose 1 or more")
        self.batch_size = batch_size
        self.split = split
        self.part = part
        self.parts = parts
        self.split_seed = split_seed
        self.examples_per_class = examples_per_class
        self.held_out = held_out
        self.augment = augment
        self.num_workers = num_workers
        self.eval_batch_size = eval_batch_size or batch_size
        self.pin_memory = pin_memory
        if num_workers < 0:
            raise ConfigError(f"num_workers is {num_workers}: choose 0 or more")
        if on_device and num_workers:
            raise ConfigError(
                f"on_device makes batches in this process: set num_workers to 0, not {num_workers}"
            )
        self.on_device = on_device
        self._resident: dict[Any, tuple[LabelledImages, LabelledImages]] = {}
        if channels not in (None, 1, 3):
            raise ConfigError(f"channels is {channels}: choose 1 (grey) or 3 (colour)")
        if normalise is not None and normalise not in _STATISTICS:
            raise ConfigError(
                f"normalise is {normalise!r}: choose clip or imagenet, or leave it out"
            )
        self.normalise = normalise
        check_parameters(corruption_parameters)
        self.corruption_parameters = corruption_parameters
        self.corruption = None if corruption is None else self._corruption(corruption, severity)
        self.resize = resize
        self.channels = channels
        self.test_examples = test_examples

    @property
    def in_chans(self) -> int:
        """Channels of an image as it is given; a subclass sets those that its files have."""
        return self.channels or self._file_channels

    @in_chans.setter
    def in_chans(self, channels: int) -> None:
        self._file_channels = channels

    @property
    def image_size(self) -> int:
        """Height and width of an image as it is given; a subclass sets that of its files."""
        return self.resize or self._file_size

    @image_size.setter
    def image_size(self, size: int) -> None:
        self._file_size = size

    @abstractmethod
    def load_splits(self) -> OfficialSplits:
        """Read the data set: its targets, and its images or where they are.

        Raises:
            DataError: If a file is missing or damaged; the message says how to get it.
        """

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Read the data and divide it; all stages at once, and only the first time.

        Raises:
            DataError: If a file is missing or damaged, the split does not suit the labels,
                or leaves no example for this part.
        """
        if hasattr(self, "split_hash"):
            return
        official = adapted(self.load_splits(), self.resize, self.channels)
        labels = official.train.targets.numpy()
        train, held_out = choose(
            labels,
            self.held_out,
            self.split,
            self.part,
            self.parts,
            self.examples_per_class,
            self.split_seed,
        )
        if self.held_out:
            warn_of_none_held_out(labels, held_out, self.held_out, self._label_names())
        published = adapted_normalisation(
            self.published_normalisation, self._file_channels, self.in_chans
        )
        if self.normalise is not None:
            published = _STATISTICS[self.normalise](self.in_chans)
        self.normalisation = published or Normalisation.of(official.train.images)
        self.train_set = ImageDataset(
            official.train,
            self.normalisation,
            torch.from_numpy(train),
            padding=self.image_size // 8 if self.augment else 0,
            flip=self.augment and self.horizontal_flip,
        )
        self.val_set = None
        if len(held_out):
            self.val_set = self._plain(official.train, held_out)
        elif official.val is not None:
            self.val_set = self._plain(official.val)
        self.test_set = ImageDataset(
            official.test,
            self.normalisation,
            self._tested(len(official.test.targets)),
            corruption=self.corruption,
        )
        self.split_hash = digest_of_split(train, held_out, labels)
        parts = (official.train, official.val, official.test)
        self._examples = digest_of_examples(
            [part.targets.numpy() for part in parts if part is not None]
        )

    def corrupted(self, corruption: str, severity: int = 3) -> Self:
        """The same data with corrupted test images; what has been read is shared.

        Args:
            corruption: As for the class; what corrupts the test images already is undone.
            severity: Of the corruption, 1 to 5.

        Raises:
            ConfigError: If there is no such corruption or severity.
        """
        self.setup("test")
        twin = copy.copy(self)
        twin.corruption = self._corruption(corruption, severity)
        twin.test_set = self.test_set.under(twin.corruption, self.eval_batch_size)
        # What the twin puts on the device goes with it.
        twin._resident = dict(self._resident)
        return twin

    @property
    def num_train_examples(self) -> int:
        """How many labelled examples are trained on (after `setup`)."""
        return len(self.train_set)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images are prepared, by the names that timm has for it; the data are read for it.

        A file that is decoded and has its orientation followed, in grey or in colour, then
        goes through torchvision's `Resize`, `CenterCrop`, `ToTensor` and `Normalize` with these
        numbers. Augmentation and corruptions come on top.

        Returns:
            `input_size` `[C, H, W]`, `mean` and `std` for each channel (of pixels in [0, 1]),
            `interpolation`, `crop_pct`, and `label_names`.

        Raises:
            DataError: As `setup` does.
        """
        self.setup()
        return {
            "input_size": [self.in_chans, self.image_size, self.image_size],
            "mean": list(self.normalisation.mean),
            "std": list(self.normalisation.std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "label_names": self._label_names(),
        }

    @property
    def division(self) -> dict[str, Any]:
        """What the examples are and how they are divided; the data are read for it.

        Returns:
            `examples`, a digest that is the same however they are divided; `held_out`, and
            `split_seed` where something is held out; `test_fraction` and `test_seed` where the
            data module has them.

        Raises:
            DataError: As `setup` does.
        """
        self.setup()
        return {
            "examples": self._examples,
            "held_out": self.held_out,
            "split_seed": self.split_seed if self.held_out else None,
            **{name: getattr(self, name, None) for name in ("test_fraction", "test_seed")},
        }

    def train_dataloader(self) -> DataLoader[Any]:
        """The training examples, augmented, in a new order from torch's generator each time.

        A last batch of a single example is dropped, for BatchNorm cannot train on it.
        """
        self.setup("fit")
        # A distributed sampler hands each process the same number, rounded up.
        processes = self.trainer.world_size if self.trainer else 1
        share = -(-len(self.train_set) // processes)
        drop = share > self.batch_size and share % self.batch_size == 1
        return self._loader(self.train_set, self.batch_size, shuffle=True, drop_last=drop)

    def statistics_dataloader(self) -> DataLoader[Any]:
        """The same examples without augmentation, in their own order, for reading statistics."""
        self.setup("fit")
        plain = self._plain(self.train_set.source, self.train_set.indices.numpy())
        return self._loader(plain, self.eval_batch_size)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The examples for selection; where there are none, an empty list, which is skipped."""
        self.setup("validate")
        return [] if self.val_set is None else self._loader(self.val_set, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """The official test examples."""
        self.setup("test")
        return self._loader(self.test_set, self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The official test examples, in order, with their targets."""
        return self.test_dataloader()

    def _label_names(self) -> list[str]:
        return list(getattr(self, "class_names", map(str, range(self.num_classes))))

    def _corruption(self, name: str, severity: int) -> Corruption:
        return Corruption(name, severity, self.corruption_parameters)

    def _tested(self, count: int) -> torch.Tensor | None:
        if self.test_examples is None or self.test_examples >= count:
            return None
        generator = torch.Generator().manual_seed(0)
        return torch.randperm(count, generator=generator)[: self.test_examples].sort().values

    def _plain(self, source: LabelledImages, indices: Indices | None = None) -> ImageDataset:
        chosen = None if indices is None else torch.from_numpy(indices)
        return ImageDataset(source, self.normalisation, chosen)

    def _loader(
        self, data: ImageDataset, batch_size: int, shuffle: bool = False, drop_last: bool = False
    ) -> DataLoader[Any]:
        if self.on_device:
            return resident_loader(data, self._on_device(data), batch_size, shuffle, drop_last)
        return DataLoader(
            data,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
        )

    def _on_device(self, data: ImageDataset) -> LabelledImages:
        device = self.trainer.strategy.root_device if self.trainer else default_device()
        # One source may be several sets'; it is kept, for its id to stay its own.
        key = id(data.source), data.corruption, device
        if key not in self._resident:
            self._resident[key] = data.source, resident(data, device)
        return self._resident[key][1]
