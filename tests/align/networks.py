"""Small networks with every construction that the engine must understand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Two hidden layers."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.one = nn.Linear(5, width)
        self.two = nn.Linear(width, width + 1)
        self.out = nn.Linear(width + 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.two(F.relu(self.one(x)))))


class Flattened(nn.Module):
    """C x 3 x 3 before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8 * 9, 10)
        self.out = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.conv(x)), 3)
        return self.out(F.relu(self.fc(torch.flatten(x, 1))))


class Block(nn.Module):
    """A CIFAR residual block with either kind of shortcut."""

    def __init__(self, inside: int, out: int, stride: int, pads: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.extra = out - inside if pads else 0
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if inside != out and not pads
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """The CIFAR ResNet20."""

    def __init__(self, width: int = 4, pads: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks, inside = [], width
        for stage in range(3):
            for block in range(3):
                out = width * 2**stage
                blocks.append(Block(inside, out, 2 if stage and not block else 1, pads))
                inside = out
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(inside, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.linear(x.mean((2, 3)))


class Attention(nn.Module):
    """Attention written out with matmul and softmax, separate projections, and a table."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.norm = nn.LayerNorm(4) if norm else nn.Identity()
        self.table = nn.Parameter(torch.randn(7, 3))
        self.register_buffer("position", torch.arange(36).reshape(6, 6) % 7)
        self.proj = nn.Linear(12, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = (f(x).reshape(b, n, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = self.norm(q), self.norm(k)
        bias = self.table[self.position].permute(2, 0, 1)
        scores = (q * 0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
        x = x + self.proj((scores @ v).transpose(1, 2).reshape(b, n, c))
        return self.out(x.mean(1))


class Grouped(nn.Module):
    """Grouped and depthwise convolutions, squeeze and excitation, GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 18, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.squeeze = nn.Linear(18, 5)
        self.excite = nn.Linear(5, 18)
        self.conv2 = nn.Conv2d(18, 16, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.conv1(x))))
        x = F.relu(self.depthwise(x))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        x = self.norm(self.conv2(x * gate[:, :, None, None]))
        return self.out(F.relu(x).mean((2, 3)))


class Rotary(nn.Module):
    """Rotary positions: rotating pairs of q and k by angles that no permutation may exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.qkv = nn.Linear(12, 36)
        angles = torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.3]))
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)
        self.register_buffer("ones", torch.ones(12), persistent=False)
        self.proj = nn.Linear(12, 12)
        self.out = nn.Linear(12, 3)

    def rotated(self, x: Tensor) -> Tensor:
        turned = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return x * self.cos + turned * self.sin

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.ones
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v)
        return self.out((x + self.proj(y.transpose(1, 2).flatten(2))).mean(1))


class Shuffled(nn.Module):
    """Grouped convolutions with their channels shuffled in between, so that groups mix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, width, 1)
        self.two = nn.Conv2d(width, width, 3, groups=2)
        self.three = nn.Conv2d(width, width, 1, groups=2)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.channel_shuffle(self.two(self.one(x).relu()).relu(), 2)
        return self.head(self.three(x).relu().mean((2, 3)))


class GroupedQueries(nn.Module):
    """Four heads of queries that read two heads of keys and values, written with einsum."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused
        self.embed = nn.Linear(5, 12)
        self.q, self.kv, self.proj = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q = self.q(x).unflatten(-1, (4, 3)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 2, 3)).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            q = q.unflatten(1, (2, 2))
            scores = torch.einsum("bgrnd,bgmd->bgrnm", q, k).softmax(-1)
            y = torch.einsum("...rnm, ...md->...rnd", scores, v).flatten(1, 2)
        return self.out((x + self.proj(y.transpose(1, 2).flatten(2))).mean(1))


class Recurrent(nn.Module):
    """Two layers of a recurrent network in both directions."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.rnn = kind(6, 4, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(x))[0].mean(1))


class LastStates(nn.Module):
    """A recurrent network whose last states are read, the upper layer's in both directions."""

    def __init__(self, kind: type[nn.RNNBase], layers: int, is_joined: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.rnn = kind(6, 4, num_layers=layers, batch_first=True, bidirectional=True)
        self.out = nn.Linear(8, 3)
        self.is_joined = is_joined

    def forward(self, x: Tensor) -> Tensor:
        states = self.rnn(self.embed(x))[1]
        last = states[0] if isinstance(states, tuple) else states
        if self.is_joined:
            return self.out(torch.cat([last[-2], last[-1]], 1))
        return self.out(last[-2:].transpose(0, 1).flatten(1))


class Stacked(nn.Module):
    """Two layers' outputs, one behind the other, of which the second one is read."""

    def __init__(self, single: bool) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.single = single

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x).relu()
        two = self.two(one).relu()
        return self.out(torch.stack([two] if self.single else [one, two])[-1:].flatten(0, 1))


class Windows(nn.Module):
    """Windows cut out and put back, and a convolution that widens again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.mix = nn.Linear(6 * 9, 6 * 9)
        self.inner = nn.Linear(6, 5)
        self.up = nn.ConvTranspose2d(6, 7, 2, stride=2)
        self.deep = nn.ConvTranspose2d(7, 7, 3, groups=7)
        self.out = nn.Linear(7 + 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        windows = x.unfold(2, 3, 2).unfold(3, 3, 2)
        inner = self.inner(windows.amax((4, 5)).permute(0, 2, 3, 1)).relu().mean((1, 2))
        columns = F.unfold(x, 3, padding=1)
        columns = self.mix(columns.transpose(1, 2)).relu().transpose(1, 2)
        x = self.up(F.fold(columns, x.shape[2:], 3, padding=1))
        return self.out(torch.cat([self.deep(F.relu(x)).mean((2, 3)), inner], 1))


class Sorting(nn.Module):
    """An operator that no rule knows, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 8)
        self.two = nn.Linear(8, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).cumsum(-1)
        return self.out(F.relu(self.two(x)))


class Branching(nn.Module):
    """A network that torch.export cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.one(x).sum().item() > 0:
            return self.one(x)
        return x


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random parameters of moderate size and random statistics; nothing keeps its default."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1:
                tensor.copy_(noise(tensor) * (2 / (tensor.numel() / tensor.shape[0])) ** 0.5)
            else:
                shift = 1.0 if name.endswith("weight") else 0.0
                tensor.copy_(noise(tensor) * 0.2 + shift)
        for name, tensor in model.named_buffers():
            if name.endswith("running_var"):
                tensor.copy_(0.6 + 0.4 * noise(tensor).abs())
            elif name.endswith("running_mean"):
                tensor.copy_(0.1 * noise(tensor))
    return model
