"""Ray: the pieces of a study as its tasks, on a cluster or on the GPUs of one machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_merge.study.executor import (
    Executor,
    died,
    executors,
    report_done,
    report_stored,
    work_alone,
)
from lightning_merge.study.runner import OnDone
from lightning_merge.study.store import Store
from lightning_merge.study.work import Work


@executors.register("ray")
class RayTasks(Executor):
    """Ray's tasks, on a cluster or on the GPUs of one machine.

    Ray gets the whole graph at once: a task takes the futures of those that it needs. A task whose
    worker dies is done again by another. The output folder has to be one that all machines see
    under one path.

    Args:
        address: Of a cluster (`auto` on one of its machines); a local one is started, and stopped
            afterwards, if not given.
        gpus: How many GPUs a piece has; 1 where the cluster has any, if not given.
        cpus: How many CPU cores a piece has, which is also how many threads torch uses.
        retries: How often a piece is done again whose worker died.
    """

    needs = ("ray", "ray")

    def __init__(
        self,
        address: str = "local",
        gpus: float | None = None,
        cpus: float = 1,
        retries: int = 3,
    ) -> None:
        self.address, self.gpus, self.cpus, self.retries = address, gpus, cpus, retries

    def run(
        self, works: Sequence[Work], store: Store, on_done: OnDone | None, progress: bool
    ) -> None:
        """Does what is not stored yet."""
        del progress
        left = report_stored(works, store, on_done)
        if not left:
            return
        import ray

        began = not ray.is_initialized()
        if began:
            ray.init(address=self.address, include_dashboard=None, log_to_driver=False)
        lost = ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError
        pending = {}
        try:
            gpus = self.gpus
            if gpus is None:
                gpus = min(1, ray.cluster_resources().get("GPU", 0))
            task = ray.remote(_piece).options(
                num_cpus=self.cpus, num_gpus=gpus, max_retries=self.retries
            )
            futures: dict[str, Any] = {}
            folder = store.folder.absolute()
            for work in left:
                needed = [futures[key] for key in work.needs if key in futures]
                futures[work.key] = task.remote(work, folder, *needed)
            pending = {futures[work.key]: work for work in left}
            while pending:
                (future,), _ = ray.wait(list(pending), num_returns=1)
                work = pending.pop(future)
                try:
                    message = ray.get(future)
                except lost as error:
                    raise died(work, self.retries + 1) from error
                report_done(work, message, store, on_done)
        finally:
            for future in pending:
                ray.cancel(future, force=True)
            if began:
                ray.shutdown()


def _piece(work: Work, folder: Path, *needed: str) -> str:
    return next(filter(None, needed), "") or work_alone(work, folder)
