"""Alignments and recalibrations from the command line: by name, compared, drawn, refused."""

import json

import pytest
import torch
import yaml
from tiny_contexts import trained

from lightning_merge.cli import main
from lightning_merge.errors import ConfigError
from lightning_merge.files import write_json


def write_config(tmp_path, recipes, count=2, **network):
    """A comparison of trained tiny networks; gives its words without `--output`."""
    paths = []
    for seed in range(count):
        paths.append(tmp_path / f"{seed}.pt")
        torch.save(trained(seed, **network).state_dict(), paths[-1])
    config = {
        "checkpoints": [str(path) for path in paths],
        "model": {"class_path": "tiny_contexts.Perceptron", "init_args": network},
        "data": {"class_path": "tiny_contexts.Points"},
        "recipes": recipes,
    }
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(config))
    return ["compare", "-c", str(tmp_path / "compare.yaml")]


def recipe(name, align=None, recalibrate=None, aggregate="Average"):
    return {"name": name, "align": align, "recalibrate": recalibrate, "aggregate": aggregate}


def strictly(path):
    """The JSON of a file; NaN is none."""
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))


def fails(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_alignments_are_compared_and_drawn(tmp_path, capsys):
    cca = {"class_path": "CCAMatching", "init_args": {"candidates": [0.01, 1.0]}}
    recipes = [
        recipe("All", aggregate="LogitsEnsemble"),
        recipe("Direct"),
        recipe("Direct R", None, "repair"),
        recipe("Permute R", "ActivationMatching", "repair"),
        recipe("CCA", cca),
    ]
    words = write_config(tmp_path, recipes, count=3)
    out = tmp_path / "out"
    main([*words, "--output", str(out), "--barrier", "3", "--triangle", "2"])
    said = capsys.readouterr().out
    results = strictly(out / "results.json")
    names = ["direct", "direct + REPAIR", "Permute + REPAIR", "CCA"]
    assert [line["name"] for line in results["lines"]] == names
    assert [triangle["name"] for triangle in results["triangles"]] == names
    assert all(len(triangle["loss"]) == 3 for triangle in results["triangles"])
    assert results["choices"].keys() == {"CCA"}
    gammas = [choice["gamma"] for choice in results["choices"]["CCA"]]
    assert len(gammas) == 2
    rows = {row["method"]: row for row in results["measurements"]}
    assert f"gamma {gammas[0]:g}" in rows["CCA"]["chosen"]
    assert f"gamma {gammas[0]:g}, chosen on 70 examples" in said
    assert f"gamma {gammas[0]:g}" in (out / "report.md").read_text()
    assert (out / "barrier.png").is_file()
    assert (out / "triangle.svg").is_file()
    # Recalibration matters, and alignment does: otherwise nothing was compared.
    assert len({rows[name]["loss"] for name in ("Direct", "Direct R", "Permute R", "CCA")}) == 4
    words = ["plot", "barrier", str(out / "results.json"), "--output", str(tmp_path / "mine.png")]
    main(words)
    drawn = sorted(path.name for path in tmp_path.glob("mine*"))
    assert drawn == ["mine-triangle.png", "mine-triangle.svg", "mine.png", "mine.svg"]
    for name in ("mine.png", "mine.svg"):
        (tmp_path / name).unlink()
    assert "mine-triangle.png exists" in fails(capsys, words)
    assert not (tmp_path / "mine.png").exists()


def test_weight_matching_and_reset_by_name(tmp_path):
    """The line's middle is what the recipe of that name gives."""
    recipes = [recipe("W", "WeightMatching"), recipe("W R", "WeightMatching", "batchnorm")]
    words = write_config(tmp_path, recipes, norm=True)
    main([*words, "--output", str(tmp_path / "out"), "--barrier", "3"])
    results = strictly(tmp_path / "out/results.json")
    lines = {line["name"]: line for line in results["lines"]}
    rows = {row["method"]: row for row in results["measurements"]}
    for name, line in (("W", "Weight matching"), ("W R", "Weight matching + reset")):
        assert lines[line]["loss"][1] == pytest.approx(rows[name]["loss"], rel=1e-4)
    assert rows["W"]["loss"] != pytest.approx(rows["W R"]["loss"], rel=1e-2)


def test_names_work_on_the_command_line(tmp_path):
    words = write_config(tmp_path, [recipe("x")])
    words[0] = "merge"
    config = yaml.safe_load((tmp_path / "compare.yaml").read_text())
    del config["recipes"]
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(config))
    words += ["--recipe.name", "W", "--recipe.aggregate", "Average"]
    words += ["--recipe.align", "CCAMatching", "--recipe.align.init_args.gamma", "0.2"]
    words += ["--recipe.recalibrate", "repair", "--statistics_examples", "50"]
    main([*words, "--output", str(tmp_path / "out")])
    result = strictly(tmp_path / "out/result.json")
    assert result["config"]["recipe"]["align"]["init_args"]["gamma"] == 0.2
    assert result["config"]["statistics_examples"] == 50
    assert result["choices"] == []


@pytest.mark.parametrize(
    ("norm", "kind", "says"),
    [(True, "repair", "`recalibrate: batchnorm`"), (False, "batchnorm", "`recalibrate: repair`")],
)
def test_the_wrong_recalibration_is_refused_at_once(tmp_path, capsys, norm, kind, says):
    recipes = [recipe("Fine"), recipe("Wrong", "ActivationMatching", kind)]
    words = write_config(tmp_path, recipes, norm=norm)
    line = fails(capsys, [*words, "--output", str(tmp_path / "out")])
    assert "recipe 'Wrong'" in line
    assert says in line
    assert not (tmp_path / "out").exists()
    study = [
        "study",
        "--model",
        f"{{class_path: tiny_contexts.Perceptron, init_args: {{norm: {str(norm).lower()}}}}}",
    ]
    study += ["--data", "tiny_contexts.Points", "--recipes", json.dumps(recipes)]
    line = fails(capsys, [*study, "--output", str(tmp_path / "study")])
    assert "recipe 'Wrong'" in line
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--triangle", "5"], "a triangle lies between three ingredients, there are 2"),
        (["--triangle", "1"], "triangle is 1"),
        (["--statistics_examples", "1"], "statistics_examples is 1"),
    ],
)
def test_a_landscape_that_cannot_be_measured_is_refused(tmp_path, capsys, more, says):
    words = write_config(tmp_path, [recipe("x")])
    assert says in fails(capsys, [*words, *more, "--output", str(tmp_path / "out")])


def test_overwriting_removes_merges_of_recipes_that_are_gone(tmp_path):
    words = write_config(tmp_path, [recipe("Old"), recipe("Kept", "WeightMatching")])
    out = tmp_path / "out"
    main([*words, "--output", str(out)])
    assert {path.name for path in (out / "merges").iterdir()} == {"old.ckpt", "kept.ckpt"}
    words = write_config(tmp_path, [recipe("New"), recipe("Kept", "WeightMatching")])
    main([*words, "--output", str(out), "--overwrite"])
    assert {path.name for path in (out / "merges").iterdir()} == {"new.ckpt", "kept.ckpt"}
    assert [row["method"] for row in strictly(out / "results.json")["measurements"][2:]] == [
        "New",
        "Kept",
    ]


def test_what_is_not_finite_is_written_as_null(tmp_path):
    bad = [float("nan"), (1.5, float("-inf")), {"x": float("inf")}, True, "nan"]
    write_json(tmp_path / "x.json", {"rows": bad})
    assert strictly(tmp_path / "x.json") == {"rows": [None, [1.5, None], {"x": None}, True, "nan"]}


def test_an_unexpected_error_is_not_called_mendable(monkeypatch):
    """What goes wrong while a mendable error is handled is a fault of ours."""
    import lightning_merge.commands.compare as command

    def broken(words):
        try:
            raise ConfigError("mend this")
        except ConfigError:
            {}["missing"]

    monkeypatch.setattr(command, "compare", broken)
    with pytest.raises(KeyError, match="missing"):
        main(["compare"])


def test_a_study_draws_the_lines_of_its_recipes(tmp_path):
    recipes = [recipe("P", "ActivationMatching"), recipe("P R", "ActivationMatching", "repair")]
    words = ["study", "--model", "tiny_contexts.Learner", "--data", "tiny_contexts.Points"]
    words += ["--recipes", json.dumps(recipes), "--training", "{max_epochs: 2}"]
    words += ["--ingredients", "[{}, {}, {}]", "--barrier", "2", "--triangle", "2"]
    out = tmp_path / "out"
    main([*words, "--seeds", "[0, 1]", "--statistics_examples", "40", "--output", str(out)])
    results = strictly(out / "results.json")
    names = ["direct", "Permute", "Permute + REPAIR"]
    assert [line["name"] for line in results["lines"]] == names * 2
    assert [triangle["name"] for triangle in results["triangles"]] == names * 2
    assert results["statistics_examples"] == 40
    assert "40 training examples" in (out / "report.md").read_text()
    assert (out / "triangle.png").is_file()
