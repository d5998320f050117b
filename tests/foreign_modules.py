"""LightningModules whose files or state are not simply their parameters and buffers."""

import copy

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset


class Plain(LightningModule):
    """A perceptron with BatchNorm on eight numbers, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        right = self(batch[0]).argmax(1) == batch[1]
        self.log("acc", right.float().mean(), batch_size=len(right))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Distilled(Plain):
    """Taught by a frozen network, which its own `state_dict` leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(8, 3).requires_grad_(False)
        nn.init.ones_(self.teacher.weight)
        self.strict_loading = False

    def training_step(self, batch, batch_idx):
        target = self.teacher(batch[0]).softmax(1)
        return nn.functional.cross_entropy(self(batch[0]), target)

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if "teacher." not in name}


class DistilledByHook(Distilled):
    """The same, left out when a checkpoint is written."""

    def state_dict(self, *args, **kwargs):
        return LightningModule.state_dict(self, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint):
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: v for n, v in state.items() if "teacher." not in n}


class BuiltLate(Plain):
    """Has no network before `configure_model`."""

    def __init__(self) -> None:
        LightningModule.__init__(self)
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


class Lazy(Plain):
    """Learns the number of its inputs from the first batch, or from a file."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Linear(6, 3))


class Masked(Plain):
    """Attention under a causal mask of infinities, as a buffer or as a frozen parameter."""

    def __init__(self, parameter: bool = False) -> None:
        super().__init__()
        mask = torch.full((8, 8), float("-inf")).triu(1)
        if parameter:
            self.mask = nn.Parameter(mask, requires_grad=False)
        else:
            self.register_buffer("mask", mask)

    def forward(self, x):
        scores = (x[:, :, None] * x[:, None] + self.mask).softmax(-1)
        return self.net((scores @ x[:, :, None])[..., 0])


class Remembering(Plain):
    """Has extra state: a number, or a tensor."""

    def __init__(self, tensor: bool = False, temperature: float = 1.0) -> None:
        super().__init__()
        self.tensor, self.temperature = tensor, temperature

    def get_extra_state(self):
        return torch.tensor(self.temperature) if self.tensor else {"t": self.temperature}

    def set_extra_state(self, state):
        self.temperature = float(state if self.tensor else state["t"])


def numbers(count: int = 64) -> DataLoader:
    """Eight numbers whose first three tell the class, in a fixed order."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)


class Smoothed(Plain):
    """Keeps a running mean of its network, which it writes itself after every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.5))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.mean.update_parameters(self.net)


class MeanTeacher(Plain):
    """The same by hand, in a frozen copy."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        for one, other in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            one.data.lerp_(other.data, 0.5)
