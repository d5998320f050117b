"""submitit: the pieces of a study as jobs of SLURM, or as processes of this machine."""

import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from lightning_merge.errors import ConfigError
from lightning_merge.study.executor import (
    Executor,
    died,
    executors,
    report_done,
    report_stored,
    work_alone,
)
from lightning_merge.study.runner import PAUSE, OnDone
from lightning_merge.study.store import Store
from lightning_merge.study.work import Work


@executors.register("submitit")
class SubmititJobs(Executor):
    """submitit's jobs: of SLURM, or processes of this machine.

    A job is submitted as soon as those that it needs have ended. One that ended without a result
    (killed, out of time, its machine lost) is submitted again. The jobs' scripts and output are
    in `jobs/` in the output folder, which all machines have to see under one path.

    Args:
        cluster: `slurm` or `local`; SLURM where there is one, if not given.
        at_once: How many jobs there are at a time; as many as SLURM takes, or as the machine has
            CPU cores, if not given.
        retries: How often a piece is done again whose job ended without a result.
        parameters: Of a job, as submitit names them, for example `slurm_partition`,
            `gpus_per_node`, `cpus_per_task`, `mem_gb` and `timeout_min`.
    """

    needs = ("submitit", "slurm")

    def __init__(
        self,
        cluster: str | None = None,
        at_once: int | None = None,
        retries: int = 3,
        **parameters: Any,
    ) -> None:
        self.cluster, self.at_once, self.retries = cluster, at_once, retries
        self.parameters = parameters

    def run(
        self, works: Sequence[Work], store: Store, on_done: OnDone | None, progress: bool
    ) -> None:
        """Does what is not stored yet."""
        del progress
        waiting = deque(report_stored(works, store, on_done))
        if not waiting:
            return
        from submitit.core.utils import FailedJobError, UncompletedJobError

        executor = self._executor(store)
        at_once = self.at_once
        if at_once is None:
            at_once = len(waiting) if executor.cluster == "slurm" else os.cpu_count() or 1
        left = {work.key for work in waiting}
        tried = dict.fromkeys(left, 0)
        jobs: dict[str, tuple[Work, Any]] = {}
        try:
            while left:
                for work in list(waiting):
                    if len(jobs) < at_once and left.isdisjoint(work.needs):
                        waiting.remove(work)
                        tried[work.key] += 1
                        job = executor.submit(work_alone, work, store.folder.absolute())
                        jobs[work.key] = work, job
                time.sleep(PAUSE)
                for key, (work, job) in list(jobs.items()):
                    if not job.done():
                        continue
                    del jobs[key]
                    try:
                        message = job.result()
                    except FailedJobError:
                        raise
                    except UncompletedJobError as error:
                        if tried[key] > self.retries:
                            raise died(work, tried[key]) from error
                        waiting.appendleft(work)
                        continue
                    report_done(work, message, store, on_done)
                    left.remove(key)
        finally:
            for _, job in jobs.values():
                job.cancel()

    def _executor(self, store: Store) -> Any:
        import submitit

        try:
            made = submitit.AutoExecutor(store.folder.parent.absolute() / "jobs", self.cluster)
            made.update_parameters(name="lightning_merge", **self.parameters)
        except (NameError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--executor_options of submitit: {error}; change them") from error
        return made
