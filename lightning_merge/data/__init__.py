"""Data modules for digits, MedMNIST and CIFAR, and the splits among ingredients."""

from lightning_merge.data.cifar import CIFARDataModule
from lightning_merge.data.digits import DigitsDataModule
from lightning_merge.data.images import ImageDataset, LabelledImages, Normalisation
from lightning_merge.data.medmnist import MedMNISTDataModule
from lightning_merge.data.module import ClassificationDataModule, OfficialSplits
from lightning_merge.data.splits import examples_per_class, hold_out, split_indices

__all__ = [
    "CIFARDataModule",
    "ClassificationDataModule",
    "DigitsDataModule",
    "ImageDataset",
    "LabelledImages",
    "MedMNISTDataModule",
    "Normalisation",
    "OfficialSplits",
    "examples_per_class",
    "hold_out",
    "split_indices",
]
