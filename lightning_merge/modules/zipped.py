"""Two networks with one trunk as a LightningModule, for both tasks together or for one.

Source: Stoica et al. 2024, "ZipIt! Merging Models from Different Tasks without Training".
"""

from typing import Any, Literal

from torch import Tensor

from lightning_merge.align.zipping.two_heads import TwoHeads
from lightning_merge.errors import ConfigError
from lightning_merge.modules.ensemble import EnsembleModule

Answer = Literal["mean", "a", "b"]


class ZippedModule(EnsembleModule):
    """Tests and predicts with two LightningModules that share their first layers.

    It takes over the class, steps and metrics of the module whose head answers, so that
    `Trainer.test` measures it on either task.

    Args:
        zipped: What `zip_it` made of two LightningModules up to a layer.
        answer: `a` or `b` for what one of the heads gives; `mean` for the mean of both, which
            then have the same classes.

    Raises:
        ConfigError: If `answer` is another one, or the mean is that of two classes of modules.

    Example:
        A network for each of two tasks, tested on its own task behind the common trunk:

            zipped = zip_it(spec, cars, birds, batches, until="layer3")
            for answer, data in (("a", cars_data), ("b", birds_data)):
                trainer.test(ZippedModule(copy.deepcopy(zipped), answer), data)
    """

    def __init__(self, zipped: TwoHeads, answer: Answer = "mean") -> None:
        if answer not in ("mean", "a", "b"):
            raise ConfigError(f"ZippedModule: answer is {answer!r}; choose 'mean', 'a' or 'b'")
        one, other = zipped.heads
        heads = {"mean": [one, other], "a": [one], "b": [other]}[answer]
        super().__init__(heads, batched=False)  # type: ignore[arg-type]
        self.trunk = zipped.trunk

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The output of one head, or the mean output of both."""
        with self.trunk.running(*args, **kwargs):
            return super().forward(*args, **kwargs)
