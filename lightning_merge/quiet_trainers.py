"""Lightning's messages about each Trainer, silenced where dozens are made."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("lightning.pytorch", "lightning.fabric")
MESSAGES = (".*does not have many workers.*", ".*smaller than the logging interval.*")


@contextmanager
def quiet_trainers() -> Iterator[None]:
    """Silences them meanwhile, and leaves loggers and filters of warnings as they were."""
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    with warnings.catch_warnings():
        for message in MESSAGES:
            warnings.filterwarnings("ignore", message)
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module="(lightning|torch).*")
        for name, level in before.items():
            logging.getLogger(name).setLevel(max(level, logging.ERROR))
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
