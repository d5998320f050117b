"""One batch through the first ingredient, before anything that takes time."""

import contextlib
import io

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_merge.callbacks.first_batch import FirstBatch
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import not_torn_down
from lightning_merge.recipe.context import Context


def check_one_batch(context: Context) -> None:
    """Tests the first ingredient on one batch; random numbers are left as they were.

    A `ConfigError` if the Trainer's settings cannot be met, the module has no test, or its test
    cannot compute on the data.
    """
    trainer = context.trainer(limit_test_batches=1)
    trainer.callbacks.append(FirstBatch())  # type: ignore[attr-defined]
    module = context.build(context.states[0])
    name, data = type(module).__name__, type(context.data).__name__
    try:
        quiet = contextlib.redirect_stdout(io.StringIO())
        with isolate_rng(), quiet, not_torn_down(context.data):
            trainer.test(module, datamodule=context.data, verbose=False)
    except ConfigError:
        raise
    except (MisconfigurationException, RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"{name} cannot be tested on a batch of {data}: {reason}; give the data that it was "
            "trained on, or another model"
        ) from error
