"""A CLIP that is made in no time, with open_clip's own classes and words."""

import torch

IMAGE_SIZE = 16

TINY = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "layers": 2,
        "width": 32,
        "patch_size": 8,
        "head_width": 16,
    },
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}


def tiny_clip(seed=0):
    """A whole CLIP, image and text, whose every parameter is random, norms' among them."""
    import open_clip

    torch.manual_seed(seed)
    clip = open_clip.create_model("ViT-B-32", **TINY)
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if name != "logit_scale":
                parameter.add_(0.1 * torch.randn(parameter.shape))
        clip.logit_scale.fill_(3.0)
    return clip.eval()


def write_clip(path, seed=0):
    """The same, whose weights are put into a file that open_clip reads."""
    clip = tiny_clip(seed)
    torch.save(clip.state_dict(), path)
    return clip
