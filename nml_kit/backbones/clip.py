"""open_clip's CLIP model around our compact ResNet, built from the configuration in this package.

N images or texts, E dimensions of the space that they share.
"""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nml_kit.backbones.backbone import library
from nml_kit.backbones.networks import CompactResNet, seeded, stage_widths
from nml_kit.errors import InvalidInputError, unknown_name

CLIP_COMPACT = "clip-compact"
OPEN_CLIP = "open_clip:"
CLIP_PATTERNS: tuple[str, ...] = (CLIP_COMPACT, f"{CLIP_COMPACT}:WIDTH (a multiple of 8)")
_CONFIGS = Path(__file__).parent / "open_clip_configs"
_TEXTS_AT_ONCE = 512
_OTHER_TEXT = {"hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs"}


class ImageEncoder(nn.Module):
    """A CLIP model as an encoder of images: `encode_image`, projected and not normalised (N, E)."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Any) -> Any:
        return self.clip.encode_image(images)


class ImageTower(ImageEncoder):
    """A CLIP model as an encoder of images: the pooled output (N, D) of its image network, before the projection.

    open_clip's own ResNets and ViTs project inside; there the identity takes the place of the projection.
    """

    def forward(self, images: Tensor) -> Tensor:
        visual = self.clip.visual
        return visual.trunk(images) if hasattr(visual, "trunk") else functional_call(visual, _identity(visual), images)


def project(clip: Any, features: Tensor) -> Tensor:
    """What `encode_image` makes of images with these features of `ImageTower`: (N, E), not normalised."""
    visual = clip.visual
    if hasattr(visual, "trunk"):
        return visual.head(features)
    return visual.attnpool.c_proj(features) if hasattr(visual, "attnpool") else features @ visual.proj


def _identity(visual: Any) -> dict[str, Tensor]:
    """The parameters of the projection inside an image network of open_clip, as the identity."""
    if not hasattr(visual, "attnpool"):
        return {"proj": torch.eye(len(visual.proj), device=visual.proj.device)}
    weight = visual.attnpool.c_proj.weight
    identity, nothing = torch.eye(weight.shape[1], device=weight.device), weight.new_zeros(weight.shape[1])
    return {"attnpool.c_proj.weight": identity, "attnpool.c_proj.bias": nothing}


def image_network(encoder: Any) -> Any:
    """The network that features come from: of a CLIP model that without the text network, of others all of it."""
    if not isinstance(encoder, ImageTower):
        return encoder
    visual = encoder.clip.visual
    return getattr(visual, "trunk", visual)


def is_compact(clip: Any) -> bool:
    """Whether its image network is that of "clip-compact"."""
    return isinstance(getattr(clip.visual, "trunk", None), CompactResNet)


def build_clip(architecture: str, *, seed: int) -> Any:
    """A randomly initialised open_clip model: "clip-compact", "clip-compact:WIDTH", or "open_clip:NAME".

    The image network of the first two is `CompactResNet` of that first width; the text network is a small transformer
    on open_clip's own tokens. Raises UnknownNameError for an unknown name, InvalidInputError for a model of another
    kind than CLIP, MissingDependencyError if open_clip is not installed.

    >>> sum(p.numel() for p in build_clip("clip-compact", seed=0).visual.trunk.parameters()) // 1000
    1226
    """
    if architecture.startswith(OPEN_CLIP):
        config = _plain_config(architecture.removeprefix(OPEN_CLIP))
    elif widths := stage_widths(architecture, CLIP_COMPACT):
        config = open_clip_library().get_model_config(CLIP_COMPACT)
        config["vision_cfg"]["timm_model_name"] = _register_with_timm(widths)
    else:
        raise unknown_name("contrastive architecture", architecture, (*CLIP_PATTERNS, f"{OPEN_CLIP}NAME"))
    with seeded(seed):  # by the class: `create_model` would warn of each that starts untrained
        return open_clip_library().CLIP(**config)


def _plain_config(name: str) -> dict[str, Any]:
    """The configuration of a CLIP model of open_clip that has CLIP's own networks and tokenizer."""
    require_open_clip_name(name)
    config = open_clip_library().get_model_config(name)
    if config.keys() - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"} or config["text_cfg"].keys() & _OTHER_TEXT:
        raise InvalidInputError(
            f"Expected a plain CLIP model with CLIP's own tokenizer, such as RN50 or ViT-B-16, got {name!r}."
        )
    config["vision_cfg"]["timm_model_pretrained"] = False
    return config


def require_open_clip_name(name: str) -> None:
    """Raise UnknownNameError for a model that open_clip does not know."""
    known = open_clip_library().list_models()
    if name not in known:
        raise unknown_name("open_clip model", name, known)


def tokenize(texts: Sequence[str], length: int | None = None) -> Tensor:
    """Tokens (N, length) int64 of texts, by open_clip's tokenizer; what is too long is cut off.

    `length` None is that of "clip-compact"; another model has its own, `context_length`.
    """
    return _tokenizer()(list(texts), length)


def clip_loss(clip: Any, images: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy of M pairs, each image against all texts and each text against all images."""
    features = clip.encode_image(images, normalize=True), clip.encode_text(tokens, normalize=True)
    return open_clip_library().ClipLoss()(*features, clip.logit_scale.exp())


def text_embeddings(clip: Any, tokens: Tensor) -> Tensor:
    """Unit vectors (N, E) of tokenised texts."""
    device = clip.logit_scale.device
    parts = [clip.encode_text(part.to(device), normalize=True) for part in tokens.split(_TEXTS_AT_ONCE)]
    return torch.cat(parts).float()


def class_embeddings(clip: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit vectors (K, E): per class the mean over `templates` of the unit vectors of the texts, normalised again.

    Source: Radford et al. (2021), section 3.1.4 (prompt ensembling); open_clip's `build_zero_shot_classifier`.
    """
    tokenizer, device = partial(_tokenizer(), context_length=clip.context_length), clip.logit_scale.device
    weights = open_clip_library().build_zero_shot_classifier(
        clip, tokenizer, class_names, templates, num_classes_per_batch=64, device=device
    )
    return weights.T.float()


def named_classes(class_names: Sequence[str]) -> Sequence[str]:
    """The class names, or open_clip's English ones where they are the WordNet ids of ImageNet's 1000 classes, sorted.

    >>> named_classes(("cat", "dog"))
    ('cat', 'dog')
    """
    sorted_ids = len(class_names) == 1000 and (class_names[0], class_names[-1]) == ("n01440764", "n15075141")
    return open_clip_library().IMAGENET_CLASSNAMES if sorted_ids else class_names


@cache
def open_clip_library() -> Any:
    """open_clip, which knows the configurations of this package after that."""
    open_clip = library("open_clip", "models")
    open_clip.add_model_config(_CONFIGS)
    return open_clip


@cache
def _tokenizer() -> Any:
    return open_clip_library().get_tokenizer(CLIP_COMPACT)


def _register_with_timm(widths: tuple[int, ...]) -> str:
    """The name by which timm, and so open_clip, makes the compact ResNet of these widths."""
    timm = library("timm", "models")
    name = f"nml_compact_resnet_{widths[0]}"
    if not timm.is_model(name):

        def build(pretrained: bool = False, **_: Any) -> nn.Module:
            network = CompactResNet(num_classes=1, widths=widths)
            network.reset_classifier(0)
            return network

        build.__name__ = name
        timm.models.register_model(build)
    return name
