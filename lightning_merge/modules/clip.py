"""CLIP's image tower under a head made of text (Radford et al., ICML 2021), by `open_clip`."""

import logging
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_merge.errors import ConfigError, one_line
from lightning_merge.modes import evaluation
from lightning_merge.modules.classification import ClassificationModule
from lightning_merge.modules.metrics import MetricChoice
from lightning_merge.progress import tracked

PROMPTS = ("a photo of a {}.",)

_FAILURES = (RuntimeError, OSError, ValueError, TypeError, LookupError, pickle.PickleError)

# Stands in for a text tower that nobody is going to use.
_NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}


class CLIPClassifier(ClassificationModule):
    """The image tower of a CLIP, its features normalised, and one linear head.

    With `class_names` the head is the zero-shot classifier (Radford et al., Sec. 3.1): a class's
    weights are the normalised mean, over the prompts, of the normalised embeddings of its name in
    the prompt, times CLIP's logit scale; so the logits are those of CLIP for image and text. The
    head stays as it is while the tower is fine-tuned. The text tower is there only while the head
    is made: it is in no checkpoint. A checkpoint records what it was made of, and its weights are
    whole, so `load_from_checkpoint` needs neither download nor text.

    Images are to come in colour, and as `image_size`, `image_mean` and `image_std` describe:
    `resize`, `channels: 3` and `normalise: clip` of a data module. Needs
    `pip install 'lightning-merge[clip]'`.

    Args:
        model: A name that `open_clip` knows, `ViT-B-32-quickgelu` for OpenAI's weights.
        num_classes: How many classes, where there are no names.
        pretrained: A tag of `open_clip` (`openai`), whose weights are downloaded where they are
            not in its cache, or a file of weights of the whole CLIP. None for random weights.
        class_names: One for each class, in the order of the labels; None for a random head.
        prompts: Sentences with `{}` for the name of a class. None for `a photo of a {}.`
        model_kwargs: Further arguments of `open_clip.create_model`, for example `vision_cfg`.
        train_head: Whether training changes the head, too.
        metrics: As for `ImageClassifier`.
        optimizer: Called with the parameters.
        lr_scheduler: Called with the optimizer; stepped once a batch, for fine-tuning a CLIP
            takes few epochs.
        made_from: What a checkpoint records of `pretrained`, `class_names` and `prompts`,
            which are then not given: neither weights nor head are made again.

    Raises:
        ConfigError: If `open_clip` is missing or does not know the name, weights cannot be had
            or were trained with another activation, or names and prompts do not suit.

    Attributes:
        image_size: Height and width of the images, in pixels.
        image_mean: What each channel, scaled to [0, 1], is to be shifted by.
        image_std: What it is then to be divided by.
    """

    schedule = "step"
    reads_text: ClassVar[bool] = True

    def __init__(
        self,
        model: str = "ViT-B-32",
        num_classes: int | None = None,
        pretrained: str | None = None,
        class_names: list[str] | None = None,
        prompts: list[str] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        train_head: bool = False,
        metrics: list[MetricChoice] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        made_from: dict[str, Any] | None = None,
    ) -> None:
        sentences = list(PROMPTS) if prompts is None else list(prompts)
        classes = _check(num_classes, class_names, sentences)
        super().__init__(classes, "multiclass", metrics, False, optimizer, lr_scheduler)
        if made_from is None:
            made_from = {"pretrained": pretrained}
            if class_names is not None:
                made_from |= {"class_names": list(class_names), "prompts": sentences}
        self.save_hyperparameters(
            {
                # Lightning's own word for the class, by which others find it.
                "_class_path": f"{type(self).__module__}.{type(self).__qualname__}",
                "model": model,
                "num_classes": classes,
                "model_kwargs": model_kwargs,
                "train_head": train_head,
                "metrics": metrics,
                "made_from": made_from,
            }
        )
        known = _described(model, made_from.get("pretrained"), model_kwargs or {})
        arguments = dict(model_kwargs or {})
        if pretrained is None and class_names is None:
            arguments["text_cfg"] = _NO_TEXT
        clip = _create(model, pretrained, arguments)
        self.network = _ImageTower(clip, known["embed_dim"], classes)
        height, width = _pair(clip.visual.image_size)
        if height != width:
            raise ConfigError(f"{model} takes images of {height}x{width}: only squares are given")
        self.image_size = height
        self.image_mean = tuple(known["mean"])
        self.image_std = tuple(known["std"])
        if class_names is not None:
            weight = text_weights(clip, model, class_names, sentences)
            self.network.head.weight.data.copy_(weight)
        self.network.head.requires_grad_(train_head)


class _ImageTower(nn.Module):
    def __init__(self, clip: Any, width: int, num_classes: int) -> None:
        super().__init__()
        self.visual: nn.Module = clip.visual
        # SigLIP's logits are shifted, CLIP's are not.
        shift = clip.logit_bias
        self.head = nn.Linear(width, num_classes, bias=shift is not None)
        if isinstance(shift, Tensor):
            self.head.bias.data.fill_(shift.item())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.normalize(self.visual(images), dim=-1))


@torch.no_grad()
def text_weights(
    clip: Any, model: str, class_names: Sequence[str], prompts: Sequence[str]
) -> Tensor:
    """The weights of a zero-shot head: what CLIP's text tower makes of each class, `(C, d)`.

    Of each class the mean of its sentences' unit vectors, itself made a unit vector (Radford et al.
    2021, Sec. 3.1.4), times the exponential of the logit scale. `clip` is a model of `open_clip`,
    with its text tower, and stays on its device; its name says how text becomes tokens. Prompts are
    sentences with `{}` for the name of a class.
    """
    open_clip = _open_clip()
    with _quiet():
        tokenize = open_clip.get_tokenizer(model, context_length=clip.context_length)
    home = clip.logit_scale.device
    clip.to("cuda" if torch.cuda.is_available() else home)
    device, rows = clip.logit_scale.device, []
    with evaluation(clip):
        for name in tracked(class_names, "Reading class names", len(class_names) > 10):
            tokens = tokenize([prompt.format(name) for prompt in prompts])
            found = F.normalize(clip.encode_text(tokens.to(device)).float(), dim=-1)
            rows.append(F.normalize(found.mean(0), dim=0))
    weights = torch.stack(rows) * clip.logit_scale.exp()
    clip.to(home)
    return weights.to(home)


def _check(num_classes: int | None, class_names: list[str] | None, prompts: list[str]) -> int:
    known = num_classes if class_names is None else len(class_names)
    if not known or known < 1 or num_classes not in (None, known):
        raise ConfigError(
            f"num_classes is {num_classes}, class_names are "
            f"{None if class_names is None else len(class_names)}: give the names of all classes, "
            "or how many there are"
        )
    wrong = next((prompt for prompt in prompts if prompt.count("{}") != 1), None)
    if not prompts or wrong is not None:
        raise ConfigError(f"prompt {wrong!r}: give sentences with one {{}} for the class's name")
    return known


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(
            "CLIPClassifier needs the package open_clip: pip install 'lightning-merge[clip]'"
        ) from error
    return open_clip


def _described(model: str, pretrained: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model and its weights in `open_clip`; refuses those that do not suit."""
    open_clip = _open_clip()
    known = open_clip.get_model_config(model) if ":" not in model else None
    if known is None or "multimodal_cfg" in known:
        near = get_close_matches(model, open_clip.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"open_clip knows no CLIP '{model}'{hint}")
    weights: dict[str, Any] = open_clip.get_pretrained_cfg(model, pretrained or "")
    architecture = {**known, **changes}
    own = architecture.get("quick_gelu", False)
    # The weights would load, and every activation be slightly another one.
    if weights and weights.get("quick_gelu", False) != own:
        other = model.removesuffix("-quickgelu") if own else f"{model}-quickgelu"
        raise ConfigError(
            f"weights '{pretrained}' of {model} were trained with another activation: set model "
            f"to {other}"
        )
    usual = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    return {**architecture, **usual, **weights}


def _create(model: str, pretrained: str | None, arguments: dict[str, Any]) -> Any:
    open_clip = _open_clip()
    try:
        with _quiet():
            return open_clip.create_model(model, pretrained=pretrained, **arguments)
    except _FAILURES as error:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
        raise ConfigError(
            f"{model} with weights '{pretrained}' could not be made ({one_line(error)}): choose a "
            f"file of its weights or one of its tags ({tags}), and check the network and "
            "model_kwargs"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps `open_clip` from writing to the root logger, and from configuring it for that."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def refuse(record: logging.LogRecord) -> bool:  # noqa: ARG001
        return False

    root.addHandler(handler)
    root.addFilter(refuse)
    try:
        yield
    finally:
        root.removeFilter(refuse)
        root.removeHandler(handler)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
