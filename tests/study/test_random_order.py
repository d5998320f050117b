"""A piece of work says all that it depends on: any order, any process, the same bits."""

import pytest
from fresh_process import execute_apart, kept, random_order, same

from lightning_merge import Study, TaskStudy
from lightning_merge.study.plan import plan
from lightning_merge.study.runner import run
from lightning_merge.study.store import Store
from lightning_merge.study.task_plan import plan_tasks

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def of_class(class_path, /, **arguments):
    return {"class_path": class_path, "init_args": arguments}


def pool_study(sizes):
    """Two seeds, each with a start and three ingredients; recipes that search, choose and learn."""
    return Study(
        data=of_class("tiny_contexts.Points"),
        model=of_class("tiny_contexts.Learner", norm=True),
        ingredients=[{}, {}, {}],
        start={"max_epochs": 1},
        training={"max_epochs": 2},
        trainer=QUIET,
        seeds=[0, 1],
        pool_sizes=sizes,
        sweeps={"barrier": 3, "magnitudes": [0.5, 1.0]},
        statistics_examples=64,
        recipes=[
            {"name": "Greedy", "aggregate": "GreedySoup", "recalibrate": "batchnorm"},
            {
                "name": "CCA",
                "aggregate": "Average",
                "align": of_class("CCAMatching", candidates=[0.01, 1.0]),
                "recalibrate": "batchnorm",
            },
            {"name": "Vectors", "aggregate": of_class("TaskArithmetic", candidates=[0.3, 0.6])},
            {"name": "Alphas", "aggregate": of_class("NPMerge", max_epochs=1)},
        ],
    )


def task_study():
    """Three seen tasks and an unseen one."""
    return TaskStudy(
        tasks=[
            {
                "name": f"task {name}",
                "data": of_class("tiny_tasks.Points", name=name, testable=True),
                "unseen": name == "d",
            }
            for name in "abcd"
        ],
        model=of_class("tiny_tasks.Classifier"),
        pretraining={
            "data": of_class("tiny_tasks.Points", name="a", testable=True),
            "trainer": {"max_epochs": 1},
        },
        training={"max_epochs": 2},
        trainer=QUIET,
        recipes=[
            {"name": "Average", "aggregate": "Average", "recalibrate": "batchnorm"},
            {"name": "Ada", "aggregate": of_class("AdaMerging", max_steps=3)},
            {
                "name": "Chosen",
                "aggregate": of_class("TaskArithmetic", candidates=[0.3, 0.6]),
                "select": of_class("DPP", size=2),
            },
        ],
    )


STUDY = {"start", "ingredient", "merge", "sweep"}
TASKS = {"pretraining", "task", "task_baseline", "task_merge"}


@pytest.mark.parametrize(
    ("works", "kinds", "seeds"),
    [
        pytest.param(plan(pool_study([3])), STUDY, (1,), id="study"),
        pytest.param(plan(pool_study([2, 3])), STUDY, (2, 3), id="sizes", marks=pytest.mark.slow),
        pytest.param(plan_tasks(task_study(), {}), TASKS, (1,), id="tasks"),
        pytest.param(
            plan_tasks(task_study(), {}), TASKS, (2, 3), id="orders", marks=pytest.mark.slow
        ),
    ],
)
def test_pieces_alone_and_in_any_order_give_what_one_process_gives(works, kinds, seeds, tmp_path):
    assert {work.kind for work in works} == kinds
    together = Store(tmp_path / "together")
    run(works, together, progress=False)
    expected = {work.key: kept(together, work.key) for work in works}
    for seed in seeds:
        order = random_order(works, seed)
        assert order != works
        apart = execute_apart(order, tmp_path / f"order{seed}")
        for work in works:
            for found, wanted in zip(kept(apart, work.key), expected[work.key], strict=True):
                assert same(found, wanted), f"{work.kind} '{work.name}', seed {work.seed}"
