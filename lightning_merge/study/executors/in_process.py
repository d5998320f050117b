"""Doing the pieces of a study one after the other, in this process."""

from collections.abc import Sequence

from lightning_merge.study.executor import Executor, executors
from lightning_merge.study.runner import OnDone, run
from lightning_merge.study.store import Store
from lightning_merge.study.work import Work


@executors.register("in_process")
class InProcess(Executor):
    """This process, one piece after the other."""

    def run(
        self, works: Sequence[Work], store: Store, on_done: OnDone | None, progress: bool
    ) -> None:
        """Does what is not stored yet."""
        run(works, store, on_done, progress)
