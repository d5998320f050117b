"""What a GPU does, held against the same on the CPU or a planted answer (`pytest -m gpu`)."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from strangers import Stranger, image_batches, quiet_trainer, randomise

from lightning_merge.aggregate.flat import FlatLayout
from lightning_merge.aggregate.learned_soup import merged_weights
from lightning_merge.align import ActivationMatching, PermutationSpec, WeightMatching
from lightning_merge.callbacks import BatchNormReset, GreedySoup
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.data import DigitsDataModule
from lightning_merge.modules import EnsembleModule, ImageClassifier, MergeModule
from lightning_merge.recalibrate import LeastSquares, reset_batchnorm

DEVICE, ACCELERATOR = "cuda", "gpu"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _float32_throughout():
    """TensorFloat-32 keeps ten bits of the fraction: too few to compare by."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def states():
    made = [randomise(Stranger(), seed).state_dict() for seed in (1, 2)]
    return [copy.deepcopy(one) for one in made]


def resnet20(seed):
    return randomise(ImageClassifier("resnet20_cifar"), seed).eval()


def merge(module=None, **settings):
    return MergeModule(
        module or Stranger(),
        states(),
        optimizer=lambda logits: torch.optim.SGD(logits, lr=2.0),
        **settings,
    )


def fitted(accelerator=ACCELERATOR, module=None, merging=None, **settings):
    """The alphas after two epochs, on the CPU, and the module."""
    merged = merge(module, **(merging or {}))
    trainer = quiet_trainer(**{"max_epochs": 2, "accelerator": accelerator, **settings})
    trainer.fit(merged, image_batches())
    return torch.sigmoid(merged.alpha_logits.detach().float().cpu()), merged


@pytest.fixture(scope="module")
def on_the_cpu():
    alphas, _ = fitted("cpu")
    assert (alphas - 0.5).abs().max() > 0.05
    return alphas


def moved_alike(ours, theirs, tolerance):
    # Relative to how far training moved them: alphas that stayed would be close to any.
    distance = (ours - theirs).norm() / (theirs - 0.5).norm()
    assert distance < tolerance, f"{distance:.3g}"


def test_weights_and_gradient_are_those_of_plain_autograd_in_float64():
    shapes = {"a": (64, 33), "b": (7,), "c": (5, 3, 3, 3)}
    tensors = {name: torch.randn(shape, device=DEVICE) for name, shape in shapes.items()}
    layout = FlatLayout(tensors)
    first, second, logits, weigh = (torch.randn(layout.size, device=DEVICE) for _ in range(4))
    logits.requires_grad_()
    views = merged_weights(logits, [first, second], torch.empty_like(first), layout)
    pieces = layout.views(weigh)
    loss = sum((view * piece).sum() for view, piece in zip(views, pieces, strict=True))
    loss.backward()

    plain = logits.detach().cpu().double().requires_grad_()
    a, b, g = (one.cpu().double() for one in (first, second, weigh))
    merged = torch.sigmoid(plain) * a + (1 - torch.sigmoid(plain)) * b
    (merged * g).sum().backward()
    for view, wanted in zip(views, layout.views(merged.detach()), strict=True):
        assert torch.allclose(view.detach().cpu().double(), wanted, atol=1e-5)
    assert torch.allclose(logits.grad.cpu().double(), plain.grad, atol=1e-5)


def test_the_alphas_are_those_of_the_cpu(on_the_cpu):
    devices = []
    watch = LambdaCallback(
        on_train_batch_end=lambda trainer, module, *_: devices.append(module.alpha_logits.device)
    )
    alphas, _ = fitted(callbacks=[watch])
    assert devices
    assert all(device.type == DEVICE for device in devices)
    moved_alike(alphas, on_the_cpu, 1e-3)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("16-mixed", 0.05), ("bf16-mixed", 0.1), ("bf16-true", 0.2)]
)
def test_precisions(on_the_cpu, precision, tolerance):
    alphas, merged = fitted(precision=precision)
    moved_alike(alphas, on_the_cpu, tolerance)
    assert merged.alpha_logits.dtype == torch.float32


def test_channels_last_and_compiled(on_the_cpu):
    module = Stranger()
    module.net.to(memory_format=torch.channels_last)
    _, other = fitted("cpu")
    _, merged = fitted(module=module)
    theirs, ours = other.alphas(), merged.alphas()
    moved_alike(*(torch.cat([x[n].cpu().flatten() for n in theirs]) for x in (ours, theirs)), 1e-3)

    compiled = Stranger()
    call = compiled.net._call_impl
    compiled.net._compiled_call_impl = torch.compile(lambda *inputs: call(*inputs))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    alphas, _ = fitted(module=compiled)
    assert torch._dynamo.utils.counters["inductor"]
    moved_alike(alphas, on_the_cpu, 1e-2)


def test_one_process_of_ddp_on_nccl(on_the_cpu):
    alphas, _ = fitted(devices=1, strategy="ddp", use_distributed_sampler=False)
    assert not torch.distributed.is_initialized() or torch.distributed.get_backend() == "nccl"
    moved_alike(alphas, on_the_cpu, 1e-3)


def test_a_stopped_run_goes_on_and_its_checkpoint_loads_on_the_cpu(tmp_path):
    whole, _ = fitted()
    merged = merge()
    trainer = quiet_trainer(max_epochs=1, accelerator=ACCELERATOR)
    trainer.fit(merged, image_batches())
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    resumed = merge()
    quiet_trainer(max_epochs=2, accelerator=ACCELERATOR).fit(
        resumed, image_batches(), ckpt_path=tmp_path / "stopped.ckpt"
    )
    # Some of a GPU's sums have no fixed order.
    moved_alike(torch.sigmoid(resumed.alpha_logits.detach().cpu()), whole, 1e-4)

    loaded = Stranger.load_from_checkpoint(tmp_path / "stopped.ckpt", map_location="cpu")
    assert all(value.device.type == "cpu" for value in loaded.state_dict().values())
    x = next(iter(image_batches()))[0]
    with torch.no_grad():
        ours = merged.to(DEVICE).eval()(x.to(DEVICE)).cpu()
        assert torch.allclose(loaded.eval()(x), ours, atol=1e-4)


@pytest.mark.parametrize("matching", [ActivationMatching(), WeightMatching()])
def test_a_planted_permutation_is_found(matching):
    model, twin = resnet20(1), resnet20(2)
    spec = PermutationSpec.from_model(model, torch.randn(8, 3, 32, 32))
    twin.load_state_dict(spec.apply(model.state_dict(), spec.random()))
    batches = [torch.randn(8, 3, 32, 32, device=DEVICE) for _ in range(3)]
    state = matching.align(spec, model.to(DEVICE), twin.to(DEVICE), batches)
    assert all(torch.equal(state[n].cpu(), t.cpu()) for n, t in model.state_dict().items())


def test_a_spec_is_derived_from_a_network_on_the_gpu():
    model = resnet20(1).to(DEVICE)
    spec = PermutationSpec.from_model(model, torch.randn(2, 3, 32, 32, device=DEVICE))
    on_cpu = PermutationSpec.from_model(resnet20(1), torch.randn(2, 3, 32, 32))
    assert sorted(group.size for group in spec.groups) == sorted(g.size for g in on_cpu.groups)
    twin = copy.deepcopy(model)
    twin.load_state_dict(spec.apply(model.state_dict(), spec.random()))
    x = torch.randn(4, 3, 32, 32, device=DEVICE)
    with torch.no_grad():
        wanted = model(x)
        assert torch.allclose(twin(x), wanted, atol=1e-3 * float(wanted.abs().max()))


def test_a_merge_module_aligns_when_it_begins():
    a = randomise(Stranger(), 1).state_dict()
    spec = PermutationSpec.from_model(Stranger().eval(), torch.randn(2, 3, 8, 8))
    b = spec.apply(a, spec.random(generator=torch.Generator().manual_seed(3)))
    assert any(not torch.equal(a[name], b[name]) for name in a)
    merged = MergeModule(Stranger(), [a, b], matching=ActivationMatching())
    quiet_trainer(max_epochs=1, accelerator=ACCELERATOR).fit(merged, image_batches())
    first, second = merged.ingredients()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_batchnorm_statistics_are_those_of_the_cpu():
    wanted, found = randomise(Stranger(), 1), randomise(Stranger(), 1)
    reset_batchnorm(wanted.net, list(image_batches()))
    batches = [[part.to(DEVICE) for part in batch] for batch in image_batches()]
    reset_batchnorm(found.net.to(DEVICE), batches)
    for (name, ours), theirs in zip(found.named_buffers(), wanted.buffers(), strict=True):
        assert torch.allclose(ours.cpu().float(), theirs.float(), rtol=1e-4, atol=1e-5), name


def test_least_squares_are_those_of_the_cpu():
    batches = list(image_batches())
    outputs = []
    for device in ("cpu", DEVICE):
        a, b, merged = (randomise(Stranger(), seed).to(device).eval() for seed in (1, 2, 3))
        LeastSquares([a, b], batches)(merged)
        with torch.no_grad():
            outputs.append(merged(batches[0][0].to(device)).cpu())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-2, atol=1e-3)


def test_a_greedy_soup_with_reset_statistics_has_the_metric_that_was_logged(tmp_path):
    module = randomise(Stranger(), 3)
    soup = GreedySoup("acc", reset_batchnorm=True, dirpath=tmp_path)
    callbacks = [soup, BatchNormReset()]
    trainer = quiet_trainer(max_epochs=3, accelerator=ACCELERATOR, callbacks=callbacks)
    trainer.fit(module, image_batches(), image_batches(seed=8))
    written = Stranger()
    written.load_state_dict(read_checkpoint(soup.best_path).state_dict)
    (found,) = quiet_trainer().validate(written, image_batches(seed=8), verbose=False)
    assert found["acc"] == pytest.approx(soup.best_score, abs=1e-6)


def test_ten_networks_asked_at_once_answer_as_ten_asked_in_turn():
    members = [randomise(Stranger(), seed).to(DEVICE).eval() for seed in range(10)]
    x = torch.randn(16, 3, 8, 8, device=DEVICE)
    with torch.no_grad():
        wanted = torch.stack([member(x) for member in members]).mean(0)
        together = EnsembleModule(members, batched=True).to(DEVICE).eval()(x)
        assert torch.allclose(together, wanted, atol=1e-4)


def test_batches_made_on_the_device_are_those_of_the_cpu():
    plain = DigitsDataModule(batch_size=64)
    ours = DigitsDataModule(batch_size=64, on_device=True)
    for name in ("train_dataloader", "statistics_dataloader", "val_dataloader", "test_dataloader"):
        read = []
        for data in (plain, ours):
            torch.manual_seed(3)
            read.append(list(getattr(data, name)()))
        for (x, y), (images, targets) in zip(*read, strict=True):
            assert images.device.type == targets.device.type == DEVICE
            assert torch.allclose(images.cpu(), x, atol=1e-5)
            assert torch.equal(targets.cpu(), y)


def test_a_batch_of_resident_data_never_waits_for_the_device():
    data = DigitsDataModule(batch_size=64, on_device=True)
    batches = iter(data.train_dataloader())
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
