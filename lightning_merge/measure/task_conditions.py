"""Metrics of a body on every task, under the tasks' own heads, on clean and corrupted images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_merge.data import ClassificationDataModule
from lightning_merge.data.corruptions import Corruption
from lightning_merge.errors import ConfigError
from lightning_merge.measure.answers import Answers
from lightning_merge.measure.measurement import answered_test, as_cells, on_held_out, split_row
from lightning_merge.progress import tracked
from lightning_merge.recipe.task_context import TaskData

CLEAN = "clean"


@dataclass
class Conditions:
    """The test sets of all tasks, clean and under corruptions of a severity from 1 to 5.

    `corrupted` names the tasks that are measured under them; all if it is empty.
    """

    tasks: Sequence[TaskData]
    corruptions: Sequence[str] = ()
    severity: int = 3
    corrupted: Sequence[str] = ()
    _made: dict[tuple[str, str], LightningDataModule] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(1 + len(self._corruptions(task)) for task in self.tasks)

    def __iter__(self) -> Iterator[tuple[str, TaskData, LightningDataModule]]:
        """Each condition's name, task and data, task by task; corrupted images are made once."""
        for task in self.tasks:
            yield CLEAN, task, task.data
            for corruption in self._corruptions(task):
                yield corruption, task, self._corrupted(task, corruption)

    def check(self) -> None:
        """Checks that the data modules can corrupt their images, and in these ways."""
        for corruption in self.corruptions:
            Corruption(corruption, self.severity)
        for task in self.tasks:
            if self._corruptions(task) and not isinstance(task.data, ClassificationDataModule):
                raise ConfigError(
                    f"task '{task.name}': {type(task.data).__name__} cannot corrupt its images; "
                    "leave it out of corrupted_tasks"
                )

    def _corruptions(self, task: TaskData) -> Sequence[str]:
        return self.corruptions if not self.corrupted or task.name in self.corrupted else ()

    def _corrupted(self, task: TaskData, corruption: str) -> LightningDataModule:
        key = task.name, corruption
        if key not in self._made:
            assert isinstance(task.data, ClassificationDataModule)
            self._made[key] = task.data.corrupted(corruption, self.severity)
        return self._made[key]


@dataclass(frozen=True)
class TaskMeasurement:
    """The metrics of one body on one task under one condition.

    Attributes:
        method: The recipe's name, or the baseline's.
        kind: `baseline` or `merge`.
        seed: The seed of the repetition.
        condition: `clean`, or a corruption's name.
        task: The task.
        seen: Whether the task's own body is among the ingredients.
        test_examples: How many test examples the metrics stand on.
        metrics: Every metric that the module's test reports, without the prefix `test_`.
        held_out: As in `Measurement`, like the attributes that follow; of clean images of seen
            tasks only.
        held_out_examples: See there.
        majority: See there.
        accuracy_low: See there.
        accuracy_high: See there.
        interval: See there.
        answers: See there; of clean images only.
    """

    method: str
    kind: str
    seed: int
    condition: str
    task: str
    seen: bool
    test_examples: int
    metrics: dict[str, float]
    held_out: float | None = None
    held_out_examples: int | None = None
    majority: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    interval: str = ""
    answers: Answers | None = field(default=None, repr=False)

    def row(self) -> dict[str, Any]:
        """The measurement as in CSV and JSON, with one column for each metric."""
        row = asdict(replace(self, answers=None))
        metrics = row.pop("metrics")
        del row["answers"]
        return {**row, **as_cells(type(self), metrics)}

    def stored(self) -> dict[str, Any]:
        """The row with the answers, if they are known, as `of_row` reads it again."""
        return self.row() | ({} if self.answers is None else {"answers": self.answers.plain()})

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "TaskMeasurement":
        """The measurement of a stored row."""
        known, metrics = split_row(cls, row)
        if known.get("answers") is not None:
            known["answers"] = Answers.of_plain(known["answers"])
        return cls(**known, metrics=metrics)


def measure_tasks(
    body: Callable[[TaskData], LightningModule | None],
    conditions: Conditions,
    trainer: Callable[..., Trainer],
    method: str,
    kind: str,
    seed: int,
    progress: bool = True,
) -> list[TaskMeasurement]:
    """A row for each task under each condition, but for tasks of which `body` makes no network.

    `body` makes what is tested on a task; method, kind and seed are as in `TaskMeasurement`.
    """
    rows = []
    # Making one takes longer than testing on a few images.
    tester = trainer()
    module, last = None, None
    for condition, task, data in tracked(conditions, f"{method}: tasks", progress):
        if task is not last:
            module, last = body(task), task
        if module is None:
            continue
        scored = condition == CLEAN and task.seen
        held_out, count = on_held_out(module, data, tester) if scored else (None, None)
        tested = answered_test(module, data, tester)
        if "accuracy" not in tested.metrics:
            raise ConfigError(
                f"task '{task.name}': {type(task.module).__name__}'s test logs no test_accuracy "
                "(test_acc), which the tables are made of"
            )
        rows.append(
            TaskMeasurement(
                method=method,
                kind=kind,
                seed=seed,
                condition=condition,
                task=task.name,
                seen=task.seen,
                test_examples=tested.examples,
                metrics=tested.metrics,
                held_out=held_out,
                held_out_examples=count,
                majority=tested.majority,
                **tested.interval,
                answers=tested.answers if condition == CLEAN else None,
            )
        )
    return rows
