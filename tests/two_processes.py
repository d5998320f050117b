"""Two ranks of a distributed run on the CPU (gloo), as torchrun would start them."""

import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch

PRELOADED = ["lightning_merge.callbacks", "lightning_merge.modules", "torch.distributed"]


def run_on_two(target: Callable[[Path], None], folder: Path) -> str:
    """Calls `target(folder)` on both ranks, and gives what they printed."""
    for _ in range(3):
        codes, said = _once(target, folder)
        # Somebody else may take the port between our finding it and our using it.
        if codes == [0, 0] or not re.search("EADDRINUSE|already in use", said):
            break
    assert codes == [0, 0], said
    return said


def _once(target: Callable[[Path], None], folder: Path) -> tuple[list[int | None], str]:
    # Both ranks are forks of one process that has imported everything, and has never run a
    # backward pass or used a GPU: neither survives a fork.
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = _free_port()
    ranks = [context.Process(target=_rank, args=(target, folder, i, port)) for i in range(2)]
    for rank in ranks:
        rank.start()
    try:
        started = time.monotonic()
        while any(rank.is_alive() for rank in ranks) and time.monotonic() - started < 500:
            # A rank that failed leaves the other one waiting for it.
            if any(rank.exitcode for rank in ranks):
                break
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    logs = [folder / f"rank{i}.log" for i in range(2)]
    said = "\n".join(log.read_text()[-3000:] for log in logs if log.exists())
    return [rank.exitcode for rank in ranks], said


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _rank(target: Callable[[Path], None], folder: Path, rank: int, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE="2",
        NODE_RANK="0",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
    )
    # Whatever a test before this one has seeded: a trainer would seed both ranks with it.
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.chdir(folder)
    torch.set_num_threads(1)
    with open(folder / f"rank{rank}.log", "w", buffering=1) as log:
        sys.stdout = sys.stderr = log
        try:
            target(folder)
        except BaseException:
            traceback.print_exc(file=log)
            raise
