"""What a module's own way of training does to the alphas of its merge."""

import warnings
from functools import partial

import torch
from foreign_modules import Plain, numbers
from strangers import quiet_trainer

from lightning_merge.modules import MergeModule


class Warmed(Plain):
    """Raises its rate in the first steps, as Lightning's documentation shows."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 1e-5 * (self.global_step + 1)


class Following(Plain):
    """Does something of its own after each step, which leaves the rate alone."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.followed = True


def states():
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.append(Plain().state_dict())
    return made


def learned(kind):
    merged = MergeModule(kind(), states(), optimizer=partial(torch.optim.SGD, lr=1.0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet_trainer(max_steps=2).fit(merged, numbers())
    return merged, [str(one.message) for one in said if "optimizer_step" in str(one.message)]


def test_a_step_that_sets_the_rate_of_the_alphas_is_told():
    plain, _ = learned(Plain)
    followed, said = learned(Following)
    assert followed.followed
    assert torch.equal(plain.alpha_logits, followed.alpha_logits)
    assert not said
    warmed, said = learned(Warmed)
    # The second step is as good as none.
    assert not torch.allclose(plain.alpha_logits, warmed.alpha_logits, atol=1e-4)
    assert said
    assert all(
        "Warmed" in line and "the learning rate at which the alphas" in line for line in said
    )
