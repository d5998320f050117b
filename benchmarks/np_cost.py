"""What a step of NP Merge costs, against a step of fine-tuning the same network."""

import torch

from benchmarks.ratio import Ratio, measure


def run() -> list[Ratio]:
    """ResNet18, batch of 32 at 64x64, Adam (fused) on either side."""
    from lightning_merge import ImageClassifier, MergeModule

    torch.manual_seed(0)
    batch = (torch.randn(32, 3, 64, 64), torch.randint(0, 10, (32,)))
    modules = [ImageClassifier("resnet18") for _ in range(3)]
    merged = MergeModule(
        ImageClassifier("resnet18"), [module.state_dict() for module in modules[:2]]
    )
    tuned = modules[2]
    steps = []
    for module, parameters in ((merged, [merged.alpha_logits]), (tuned, list(tuned.parameters()))):
        module.train()
        module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
        optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
        steps.append(_step(module, optimizer, batch))
    title = "NP Merge step, ResNet18"
    return [measure(title, *steps, pairs=21, against="fine-tuning step")]


def _step(module, optimizer, batch):  # type: ignore[no-untyped-def]
    def step() -> None:
        loss = module.training_step(batch, 0)
        loss.backward()
        module.on_after_backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
