import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import Compose, ToTensor

from nml_kit.backbones import Backbone, ImageTransform, build_network, load_backbone
from nml_kit.backbones.networks import CompactResNet, remove_classifier
from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.noise import inject_label_noise
from nml_kit.pretraining import Recipe, pretrain
from nml_kit.store import Store

LIBRARY_MODELS = [("torchvision:resnet18", 512), ("torchvision:mobilenet_v3_small", 1024), ("timm:resnet10t", 512)]
IMAGES = np.random.default_rng(0).integers(0, 256, size=(3, 32, 32, 3), dtype=np.uint8)


def test_compact_resnet_costs_what_its_docstring_says():
    network = remove_classifier(CompactResNet(num_classes=10).eval())
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() / 1e9 == pytest.approx(0.032, abs=5e-4)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(1.2, abs=0.05)


@pytest.mark.parametrize(("name", "dimension"), [("compact-resnet:24", 192), ("compact-resnet:32", 256)])
def test_width_of_the_first_stage_sets_all_of_them(name, dimension):
    backbone = load_backbone(name, seed=0)
    assert backbone(IMAGES).shape == (3, dimension)
    assert (backbone.fingerprint == load_backbone("compact-resnet", seed=0).fingerprint) == (dimension == 256)
    network = build_network(name, num_classes=7, seed=0)
    assert [block.conv1.out_channels for block in network.stages] == [dimension // 8 * 2**k for k in range(4)]
    assert network.stem[0].out_channels == dimension // 8


@pytest.mark.parametrize("name", ["compact-resnet:20", "compact-resnet:0", "compact-resnet:", "compact-resnet:-8"])
def test_a_width_that_is_no_multiple_of_eight_is_refused(name):
    with pytest.raises(UnknownNameError, match=rf"'{name}': did you mean .*Known: .*compact-resnet:WIDTH \(a multiple"):
        load_backbone(name)
    with pytest.raises(UnknownNameError, match="Unknown architecture"):
        build_network(name, num_classes=2, seed=0)


def test_random_backbone_depends_on_its_seed_alone():
    before = torch.get_rng_state()
    first, again, other = (load_backbone("compact-resnet", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    torch.testing.assert_close(first(IMAGES), again(IMAGES), rtol=0, atol=0)


def test_features_are_the_input_of_the_last_linear_layer():
    network = build_network("compact-resnet", num_classes=7, seed=0).eval()
    captured = []
    network.fc.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    transform = ImageTransform()
    with torch.no_grad():
        network(transform(torch.from_numpy(IMAGES)))
    torch.testing.assert_close(load_backbone("compact-resnet", seed=0, transform=transform)(IMAGES).shape, (3, 256))
    features = remove_classifier(network)(transform(torch.from_numpy(IMAGES)))
    torch.testing.assert_close(features, captured[0])


def test_transform_standardises_like_numpy():
    transform = ImageTransform(mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
    expected = (IMAGES / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.4, 0.3])
    result = transform(torch.from_numpy(IMAGES)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_transform_resizes_the_short_side_and_crops_the_centre():
    constant = np.full((1, 32, 64, 3), 255, dtype=np.uint8)
    result = ImageTransform(mean=(0.0,) * 3, std=(1.0,) * 3, resize=48, crop=40)(torch.from_numpy(constant))
    assert result.shape == (1, 3, 40, 40)
    torch.testing.assert_close(result, torch.ones_like(result))


@pytest.mark.parametrize("size", [(32, 32), (32, 51), (51, 32), (40, 40), (33, 60), (45, 47)])
def test_a_crop_larger_than_the_image_is_padded_with_black(size):
    image = np.random.default_rng(0).integers(1, 256, (1, *size, 3), dtype=np.uint8)
    result = ImageTransform(mean=(0.0,) * 3, std=(1.0,) * 3, crop=40)(torch.from_numpy(image))
    padded = np.pad(image[0], [*(((40 - min(side, 40)) // 2, (41 - min(side, 40)) // 2) for side in size), (0, 0)])
    top, left = ((side - 40) // 2 for side in padded.shape[:2])
    expected = padded[top : top + 40, left : left + 40] / 255
    np.testing.assert_allclose(result[0].permute(1, 2, 0).numpy(), expected, rtol=1e-6)


def test_bicubic_stays_between_black_and_white():
    edge = np.zeros((1, 16, 16, 3), dtype=np.uint8)
    edge[:, :, 8:] = 255
    result = ImageTransform((0.0,) * 3, (1.0,) * 3, resize=40, interpolation="bicubic")(torch.from_numpy(edge))
    library = np.asarray(Image.fromarray(edge[0]).resize((40, 40), Image.Resampling.BICUBIC)) / 255
    assert (result.min(), result.max()) == (0, 1)
    assert ImageTransform(interpolation="bicubic").settings["clamped"]
    np.testing.assert_allclose(result[0].permute(1, 2, 0).numpy(), library, atol=0.51 / 255)


@pytest.mark.parametrize(("name", "dimension"), LIBRARY_MODELS)
def test_library_models_give_penultimate_features(name, dimension):
    assert load_backbone(f"{name}/random", seed=0)(IMAGES[:2]).shape == (2, dimension)


def test_network_in_training_mode_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    with pytest.raises(InvalidInputError, match=r"expected a network in eval mode.*call \.eval\(\)"):
        load_backbone(network, transform=ImageTransform())(IMAGES)


def test_any_callable_works_once_it_has_a_fingerprint():
    def mean_colour(images):
        return images.mean(axis=(1, 2))

    with pytest.raises(InvalidInputError, match="expected `fingerprint_of_weights`"):
        load_backbone(mean_colour)
    backbone = load_backbone(mean_colour, fingerprint_of_weights="v1")
    np.testing.assert_allclose(backbone(IMAGES).numpy(), IMAGES.mean(axis=(1, 2)), rtol=1e-6)


def test_a_given_transform_acts_on_a_pretrained_network(task, store):
    train = task.select(split="train")
    noise = inject_label_noise(train.labels, 0.0, num_classes=task.num_classes, seed=0, ids=train.ids)
    recipe = Recipe(architecture="compact-resnet:8", epochs=1, batch_size=16)
    own = pretrain(task, noise, recipe=recipe, seed=0, store=store, progress=False)
    transform = ImageTransform(mean=(0.1, 0.2, 0.3), resize=24)
    other = load_backbone(own.name, transform=transform, store=store)
    expected = own.encode(transform(torch.from_numpy(IMAGES)))
    torch.testing.assert_close(other(IMAGES), expected, rtol=0, atol=0)
    assert other.fingerprint == own.fingerprint
    assert other.key != own.key == load_backbone(own.name, store=store).key
    with pytest.raises(InvalidInputError, match="expected no `seed`"):
        load_backbone(own.name, seed=0, store=store)


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("compact-resnet:8", {"fingerprint_of_weights": "v1"}),
        ("compact-resnet:8", {"store": Store("unused")}),
        (nn.Identity(), {"seed": 0, "fingerprint_of_weights": "v1"}),
        (nn.Identity(), {"store": Store("unused"), "fingerprint_of_weights": "v1"}),
    ],
)
def test_an_argument_that_cannot_act_is_refused(source, given):
    with pytest.raises(
        InvalidInputError, match=f"expected no `{next(iter(given))}`, which acts on .* alone, got .*leave"
    ):
        load_backbone(source, **given)


@pytest.mark.parametrize("source", ["compact-resnet:8", nn.Identity()])
def test_a_transform_of_another_kind_is_refused(source):
    with pytest.raises(
        InvalidInputError, match=r"ImageTransform or a LibraryTransform, got Compose; wrap .*\(function, s"
    ):
        load_backbone(source, transform=Compose([ToTensor()]))


def test_large_images_go_through_a_cpu_a_few_at_a_time():
    seen = []

    def mean_colour(images):
        seen.append(len(images))
        return images.mean(dim=(2, 3))

    images = np.random.default_rng(0).integers(0, 256, (20, 224, 224, 3), dtype=np.uint8)
    backbone = Backbone("colour", mean_colour, "v1", ImageTransform((0.0,) * 3, (1.0,) * 3))
    np.testing.assert_allclose(backbone(images).numpy(), images.mean(axis=(1, 2)) / 255, rtol=1e-5)
    assert seen == [8, 8, 4]
    backbone(images[:, :32, :32])
    assert seen[3:] == [20]


def test_features_of_the_wrong_shape_are_refused():
    backbone = Backbone("flat", lambda images: images.mean(axis=(1, 2, 3)), "v1", None)
    with pytest.raises(InvalidInputError, match=r"expected features of shape \(3, D\), but got \(3,\)"):
        backbone(IMAGES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("compact-resnt", "Unknown backbone 'compact-resnt': did you mean 'compact-resnet'"),
        ("torchvision:resnet19", "Unknown torchvision model 'resnet19': did you mean 'resnet18'|'resnet1"),
        ("timm:resnet50x", "Unknown timm model 'resnet50x': did you mean"),
        ("nml:abc", "Unknown pre-trained backbone 'abc'"),
    ],
)
def test_unknown_backbone_names_the_nearest(name, message):
    with pytest.raises(UnknownNameError, match=message):
        load_backbone(name)


def test_network_without_linear_layer_is_refused():
    with pytest.raises(InvalidInputError, match="ends in a linear layer"):
        remove_classifier(nn.Sequential(nn.Conv2d(3, 4, 1)))
