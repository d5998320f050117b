"""Data modules for image classification, the splits among ingredients, and corruptions."""

from lightning_merge.data.adapted import AdaptedImages
from lightning_merge.data.class_texts import prompts, readable
from lightning_merge.data.corruptions import CORRUPTIONS, Corruption
from lightning_merge.data.image_dataset import ImageDataset
from lightning_merge.data.image_files import ImageFiles
from lightning_merge.data.images import Images, LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.normalisation import Normalisation
from lightning_merge.data.sets.celeba import CelebADataModule
from lightning_merge.data.sets.chest_xray import ChestXrayDataModule
from lightning_merge.data.sets.cifar import CIFARDataModule
from lightning_merge.data.sets.digits import DigitsDataModule
from lightning_merge.data.sets.handwritten import MNISTDataModule, USPSDataModule
from lightning_merge.data.sets.huggingface import HuggingFaceDataModule
from lightning_merge.data.sets.image_folders import ImageFolderDataModule
from lightning_merge.data.sets.medmnist import MedMNISTDataModule
from lightning_merge.data.sets.tiny_imagenet import TinyImageNetDataModule
from lightning_merge.data.sets.vision_tasks import VisionTaskDataModule
from lightning_merge.data.splits import examples_per_class, hold_out, split_indices

__all__ = [
    "CORRUPTIONS",
    "AdaptedImages",
    "CIFARDataModule",
    "CelebADataModule",
    "ChestXrayDataModule",
    "ClassificationDataModule",
    "Corruption",
    "DigitsDataModule",
    "HuggingFaceDataModule",
    "ImageDataset",
    "ImageFiles",
    "ImageFolderDataModule",
    "Images",
    "LabelledImages",
    "MNISTDataModule",
    "MedMNISTDataModule",
    "Normalisation",
    "OfficialSplits",
    "TinyImageNetDataModule",
    "USPSDataModule",
    "VisionTaskDataModule",
    "examples_per_class",
    "hold_out",
    "prompts",
    "readable",
    "split_indices",
]
