"""The line of progress on a terminal."""

import io

import pytest
from rich.console import Console
from strangers import Stranger, image_batches, quiet_trainer

from lightning_merge.callbacks import FitProgress, fit_progress


@pytest.mark.parametrize(
    ("settings", "shown"), [({"max_epochs": 2}, "epoch 2/2"), ({"max_epochs": -1}, "epoch 2 ")]
)
def test_a_fit_with_and_without_a_known_end(monkeypatch, settings, shown):
    class Ending(Stranger):
        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            self.trainer.should_stop = self.current_epoch == 1

    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=100)
    monkeypatch.setattr(fit_progress, "Console", lambda stderr: terminal)
    quiet_trainer(callbacks=[FitProgress()], **settings).fit(Ending(), image_batches())
    assert "Training Ending" in written.getvalue()
    assert shown in written.getvalue()
