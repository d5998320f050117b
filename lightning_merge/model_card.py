"""The model card of an exported network: what it is, how it was made, how well it does."""

from collections.abc import Mapping
from typing import Any

import yaml

from lightning_merge.checkpoint import Checkpoint, digest
from lightning_merge.errors import markdown_cell
from lightning_merge.preprocessing import preprocessing_of

# What a measurement has beside metrics.
_NO_METRICS = (
    *("method", "kind", "seconds", "parameters", "seed", "test_examples", "train_examples"),
    *("flops", "pool_size", "chosen", "held_out", "held_out_examples", "majority"),
    *("accuracy_low", "accuracy_high", "interval", "answers", "metrics"),
)


def model_card(checkpoint: Checkpoint, result: Mapping[str, Any], timm: bool) -> str:
    """The model card of an exported network, in Markdown, with the metadata of model hubs.

    The result is as `merge` stores it; missing entries are left out. `timm` says whether timm can
    load the folder.
    """
    from huggingface_hub import ModelCard

    name = str(checkpoint.hyper_parameters.get("model") or "Merged network")
    config = result.get("config") or {}
    recipe, data = config.get("recipe"), config.get("data")
    metadata = _metadata(name, result.get("measurement") or {}, data or {}, timm)
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        f"SHA-256 of the weights: `{digest(checkpoint.state_dict)}`",
    ]
    if timm:
        ours = "_cifar" in name or name == "linear_classifier"
        first = "import lightning_merge.networks\n" if ours else ""
        parts.append(
            f"```python\nimport timm\n{first}"
            'network = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(\n"
            "    **timm.data.resolve_data_config(model=network)\n)\n```"
        )
    parts.append(_images(preprocessing_of(checkpoint.content), timm))
    ingredients = _ingredients(checkpoint, result)
    if ingredients:
        rows = [f"| {markdown_cell(one)} | `{sha}` |" for one, sha in ingredients.items()]
        parts.append(
            "\n".join(["## Ingredients", "", "| file | SHA-256 |", "| --- | --- |", *rows])
        )
    if recipe:
        parts.append(f"## Recipe\n\n{_block(recipe)}")
    if data:
        text = f"## Data\n\n{_block(data)}"
        if result.get("split_hash"):
            text += f"\n\nSHA-256 of the split: `{result['split_hash']}`"
        parts.append(text)
    if result.get("measurement"):
        measured = result["measurement"].items()
        rows = [f"| {markdown_cell(key)} | {markdown_cell(value)} |" for key, value in measured]
        parts.append("\n".join(["## Measured", "", "| | |", "| --- | --- |", *rows]))
    if result.get("command"):
        versions = ", ".join(f"{k} {v}" for k, v in (result.get("versions") or {}).items())
        parts.append(f"## Made by\n\n    {result['command']}\n\n{versions}")
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _metadata(name: str, measured: Mapping[str, Any], data: Mapping[str, Any], timm: bool) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    of = str(data.get("class_path") or "").rpartition(".")[2].removesuffix("DataModule")
    named = (data.get("init_args") or {}).get("name")
    dataset = str(named) if named else of or "unknown"
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset.lower(),
            dataset_name=dataset,
            dataset_split="test",
            metric_type=key,
            metric_value=value,
        )
        for key, value in measured.items()
        if key not in _NO_METRICS and isinstance(value, int | float)
    ]
    kind = ["image-classification"] if timm or results else []
    return ModelCardData(
        library_name="timm" if timm else None,
        model_name=name if results else None,
        eval_results=results or None,
        tags=[*kind, "model-merging"],
    )


def _images(prepared: dict[str, Any] | None, timm: bool) -> str:
    if prepared is None:
        said = (
            "## Images\n\nHow images were prepared for this network is not known: its checkpoint "
            "does not say."
        )
        its_own = (
            " `timm.data.resolve_data_config` then gives numbers of its own, which are not those "
            "of the training."
        )
        return said + its_own if timm else said
    channels, height, width = prepared["input_size"]
    rows = {
        "size": f"{height} x {width} pixels",
        "channels": "1 (grey, `Image.convert('L')`)" if channels == 1 else str(channels),
        **{name: value for name, value in prepared.items() if name != "input_size"},
    }
    lines = [
        f"| {name.replace('_', ' ')} | {markdown_cell(_plain(value))} |"
        for name, value in rows.items()
    ]
    return "\n".join(["## Images", "", "| | |", "| --- | --- |", *lines])


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _ingredients(checkpoint: Checkpoint, result: Mapping[str, Any]) -> dict[str, str]:
    """Those of the result that the checkpoint was made of; of a study there are all seeds'."""
    held = (checkpoint.content.get("lightning_merge") or {}).get("ingredients", ())
    named = dict(result.get("ingredients") or {})
    numbered = {f"ingredient {k}": sha for k, sha in enumerate(held, start=1)}
    return {name: sha for name, sha in named.items() if sha in held} or named or numbered


def _block(value: Any) -> str:
    return f"```yaml\n{yaml.safe_dump(value, sort_keys=False).rstrip()}\n```"
