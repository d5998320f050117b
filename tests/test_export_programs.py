"""`export` of what compare and study wrote, as other programs read it, and to a hub."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from huggingface_hub import ModelCard
from made_checkpoints import write_ingredient, write_ingredients

from lightning_merge import ImageClassifier, network_programs
from lightning_merge.checkpoint import digest, read_checkpoint
from lightning_merge.cli import main
from lightning_merge.errors import ConfigError
from lightning_merge.hub import push_to_hub
from lightning_merge.measure.measurement import Measurement
from lightning_merge.model_folder import export

LINEAR = {"model": "linear_classifier", "model_kwargs": {"img_size": 8}}
RECIPES = [{"name": "Mean of all", "aggregate": "Average"}, {"name": "B", "aggregate": "Average"}]
RECIPES[1]["aggregate"] = {"class_path": "Average", "init_args": {"weights": [0.9, 0.1]}}


def card_of(tmp_path, path):
    main(["export", str(path), "--output", str(tmp_path / "exported"), "--overwrite"])
    return (tmp_path / "exported/README.md").read_text()


def described(path, row, ingredients, card):
    """Whether a card has the recipe, data, metrics and ingredients of a row."""
    found = ModelCard(card).data
    values = {one.metric_type: one.metric_value for one in found.eval_results}
    assert values["accuracy"] == pytest.approx(row["accuracy"])
    assert values["loss"] == pytest.approx(row["loss"])
    what_a_row_says_besides = {field.name for field in fields(Measurement)} - {"accuracy"}
    assert set(values).isdisjoint(what_a_row_says_besides)
    assert {one.dataset_name for one in found.eval_results} == {"Digits"}
    assert found.model_name == "linear_classifier"
    assert "model-merging" in found.tags
    assert f"name: {row['method']}" in card
    assert "DigitsDataModule" in card
    shown = {sha for sha in ingredients.values() if sha in card}
    assert shown == set(read_checkpoint(path).content["lightning_merge"]["ingredients"])


def test_the_card_of_a_comparisons_merge_finds_its_row(tmp_path):
    paths = write_ingredients(tmp_path, 2, **LINEAR)
    words = ["compare", "--checkpoints", paths, "--data", "DigitsDataModule"]
    out = tmp_path / "out"
    main([*words, "--recipes", json.dumps(RECIPES), "--output", str(out)])
    results = json.loads((out / "results.json").read_text())
    rows = {row["method"]: row for row in results["measurements"]}
    assert rows["B"]["loss"] != rows["Mean of all"]["loss"]
    for name, file in (("Mean of all", "mean-of-all"), ("B", "b")):
        path = out / f"merges/{file}.ckpt"
        card = card_of(tmp_path, path)
        described(path, rows[name], results["ingredients"], card)
        assert results["command"] in card


def test_the_card_of_a_studys_merge_has_its_own_seed(tmp_path):
    model = {"class_path": "ImageClassifier", "init_args": {**LINEAR, "in_chans": 1}}
    words = ["study", "--model", json.dumps(model), "--data", "DigitsDataModule"]
    words += ["--training", "{max_epochs: 1}", "--recipes", json.dumps(RECIPES[:1])]
    out = tmp_path / "out"
    main([*words, "--seeds", "[0, 1]", "--output", str(out)])
    results = json.loads((out / "results.json").read_text())
    rows = {row["seed"]: row for row in results["measurements"] if row["kind"] == "merge"}
    assert rows[0]["loss"] != rows[1]["loss"]
    for seed in (0, 1):
        path = out / f"merges/seed{seed}/mean-of-all.ckpt"
        described(path, rows[seed], results["ingredients"], card_of(tmp_path, path))


@pytest.fixture
def network(tmp_path):
    """An ingredient that says how large its images are."""
    path = write_ingredient(tmp_path / "x.ckpt", 2, **LINEAR)
    content = torch.load(path, weights_only=True)
    content["preprocessing"] = {"input_size": [1, 8, 8], "mean": [0.3], "std": [0.4]}
    torch.save(content, path)
    return path


def test_programs_compute_what_the_network_computes(tmp_path, network):
    import onnxruntime

    main(["export", str(network), "--output", str(tmp_path / "out"), "--onnx", "--torch_export"])
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        wanted = ImageClassifier.load_from_checkpoint(network).eval()(images)
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    (found,) = session.run(None, {"images": images.numpy()})
    assert torch.allclose(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)
    alone = f"import torch; p = torch.export.load({str(tmp_path / 'out/model.pt2')!r}).module(); "
    alone += "print(p(torch.ones(3, 1, 8, 8)).detach().sum().item())"
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True)
    with torch.no_grad():
        ones = ImageClassifier.load_from_checkpoint(network).eval()(torch.ones(3, 1, 8, 8))
    assert float(done.stdout) == pytest.approx(ones.sum().item(), rel=1e-4)


def test_a_program_that_computes_something_else_is_not_kept(tmp_path, network, monkeypatch):
    real = network_programs._run_torch
    monkeypatch.setattr(network_programs, "_run_torch", lambda *given: real(*given) * 1.01)
    with pytest.raises(ConfigError, match="computes something else") as caught:
        export(network, tmp_path / "out", torch_export=True)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*.pt2"))


def test_what_programs_need_is_said_before_anything_is_written(tmp_path, monkeypatch):
    path = write_ingredient(tmp_path / "a.ckpt", 1, **LINEAR)
    with pytest.raises(ConfigError, match="how large its images are"):
        export(path, tmp_path / "out", torch_export=True)
    monkeypatch.setattr(network_programs, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lightning-merge\[onnx\]'"):
        export(path, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


class Hub:
    """Takes uploads, as `HfApi` does."""

    def __init__(self):
        self.kept = {}

    def create_repo(self, repo_id, exist_ok):
        if repo_id in self.kept and not exist_ok:
            raise ValueError("409: you already created\nthis repo")
        self.kept.setdefault(repo_id, set())

    def upload_folder(self, repo_id, folder_path, commit_message):
        from pathlib import Path

        self.kept[repo_id] = {path.name for path in Path(folder_path).iterdir()}
        return f"https://hub/{repo_id}"


def test_a_folder_is_uploaded_and_nothing_is_overwritten(tmp_path, network, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    words = ["export", str(network), "--push_to_hub", "me/merged", "--output"]
    main([*words, str(tmp_path / "out")])
    assert hub.kept == {"me/merged": {"README.md", "config.json", "model.safetensors"}}
    assert "https://hub/me/merged" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([*words, str(tmp_path / "again")])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "already created this repo" in line
    assert push_to_hub(tmp_path / "out", "me/merged", overwrite=True) == "https://hub/me/merged"


def test_the_digest_in_the_card_is_that_of_the_weights(tmp_path, network):
    assert digest(read_checkpoint(network).state_dict) in card_of(tmp_path, network)
