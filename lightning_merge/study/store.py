"""Where a study keeps what it has finished, so that it can be stopped and go on."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_merge.checkpoint import read_checkpoint, write_checkpoint
from lightning_merge.files import read_json, write_json, write_whole


class Store:
    """A folder with one subfolder for each finished task, named by the task's key.

    A task counts as finished when its `result.json` is there; that is written last.

    Args:
        folder: The folder; made when something is put into it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __contains__(self, key: str) -> bool:
        return (self.folder / key / "result.json").is_file()

    def put(
        self, key: str, result: Mapping[str, Any], content: Mapping[str, Any] | None = None
    ) -> None:
        """Keeps a task's result, and the checkpoint that it made, if any."""
        if content is not None:
            write_checkpoint(self.weights(key), content)
        write_json(self.folder / key / "result.json", result)

    def result(self, key: str) -> dict[str, Any]:
        """The result of a finished task."""
        found: dict[str, Any] = read_json(self.folder / key / "result.json")
        return found

    def weights(self, key: str) -> Path:
        """Where a task's checkpoint lies, or would."""
        return self.folder / key / "weights.ckpt"

    def state(self, key: str) -> dict[str, Any]:
        """The state dict in a task's checkpoint."""
        return read_checkpoint(self.weights(key)).state_dict

    def export(self, key: str, path: Path) -> None:
        """Copies a task's checkpoint to where a user looks for it."""
        write_whole(path, lambda partial: shutil.copyfile(self.weights(key), partial))
