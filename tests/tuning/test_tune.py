"""Tuning a backbone: its limits (λ of 0, learning rate of 0) are known, what must stay frozen is frozen to the bit."""

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nml_kit import extract_features, load_backbone, load_task
from nml_kit.backbones import ImageTransform, fingerprint_weights
from nml_kit.errors import InvalidInputError, MissingDependencyError, UnknownNameError
from nml_kit.features import Fold, in_domain_fold, samples_to_test, samples_to_train
from nml_kit.heads import LinearProbe, nmtune_terms
from nml_kit.tuning import Tuning, fine_tune, tune_on, with_features_of
from nml_kit.tuning.lora import adapted_layers, add_adapters
from nml_kit.tuning.tune import tuning_loss

SMALL = ImageTransform(resize=32, crop=32)
NETWORKS = ["compact-resnet:8", "clip-compact:8", "torchvision:resnet18/random", "timm:mobilenetv3_small_050/random"]


def quick(**settings) -> Tuning:
    return Tuning(**{"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, **settings})


def weights_of(model) -> dict[str, torch.Tensor]:
    return {**model.backbone.encode.state_dict(), "W": model.head.module_.classifier.weight.detach()}


def tuned(task, store, **settings):
    backbone = load_backbone("compact-resnet:8", seed=0, transform=SMALL)
    return fine_tune(task, backbone, quick(**settings), store=store, progress=False)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tuning_learns_and_leaves_the_backbone_as_it_was(name, method, task, store):
    backbone = load_backbone(name, seed=0, transform=SMALL)
    before = copy.deepcopy(backbone.encode.state_dict())
    tuning = quick(method=method, epochs=4, weights=0.01, learning_rate=1e-2 if method == "lora" else 1e-3)
    model = fine_tune(task, backbone, tuning, store=store, progress=False)
    assert all(torch.equal(before[key], value) for key, value in backbone.encode.state_dict().items())
    assert fingerprint_weights(backbone.encode) == backbone.fingerprint != model.backbone.fingerprint
    assert list(model.backbone.encode.state_dict()) == list(before)  # merged: its own layers again
    assert not any(weight.requires_grad for weight in model.backbone.encode.parameters())
    train = task.select(split="train")
    assert (model.predict(train.images) == train.labels).mean() > 0.9
    losses = model.head.loss_curve_
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(model.predict_proba(train.images).sum(axis=1), 1)
    features = extract_features(task, model.backbone, store=store, progress=False)
    assert (model.head.predict(features.values) == model.predict(task.images)).all()


def test_a_learning_rate_of_zero_is_the_linear_probe_on_frozen_features(task, store):
    backbone = load_backbone("compact-resnet:8", seed=0, transform=SMALL)
    features = extract_features(task, backbone, store=store, progress=False)
    train = samples_to_train(features, in_domain_fold(task.name))
    probe = LinearProbe(random_state=3).fit(train.values, train.labels)
    for method in ("full", "lora"):
        model = fine_tune(task, backbone, quick(learning_rate=0, method=method, random_state=3), store=store,
                          progress=False)  # fmt: skip
        np.testing.assert_allclose(
            model.predict_proba(task.images), probe.predict_proba(features.values), rtol=0, atol=1e-6
        )


def test_the_terms_vanish_with_their_weight_and_act_without_it(task, store):
    plain = weights_of(tuned(task, store))
    vanishing, acting = (weights_of(tuned(task, store, weights=weight)) for weight in (1e-30, 1.0))
    assert all(torch.equal(plain[name], vanishing[name]) for name in plain)
    assert not torch.equal(plain["W"], acting["W"])


def test_the_gradient_of_the_loss_is_that_of_its_parts(task):
    generator = torch.Generator().manual_seed(0)
    Z, F = (torch.randn(12, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    codes, classifier = torch.arange(12) % 3, nn.Linear(6, 3).double()
    weights = (0.3, 0.2, 0.1)

    def gradient(loss):
        return torch.autograd.grad(loss, point)[0]

    point = Z.clone().requires_grad_()
    whole = gradient(tuning_loss(point, F, codes, classifier, weights))
    parts = gradient(nn.functional.cross_entropy(classifier(point), codes))
    for weight, term in zip(weights, nmtune_terms(point, F), strict=True):
        parts = parts + weight * torch.autograd.grad(term, point, retain_graph=True)[0]
    torch.testing.assert_close(whole, parts)
    assert torch.autograd.gradcheck(lambda z: tuning_loss(z, F, codes, classifier, weights), (point,))
    torch.testing.assert_close(
        gradient(tuning_loss(point, F, codes, classifier, (0.0, 0.0, 0.0))),
        gradient(nn.functional.cross_entropy(classifier(point), codes)),
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_at_the_start_the_features_are_the_frozen_ones(method, task, store, monkeypatch):
    """The first loss with λ on mse alone is that without it: mse is 0, whatever the batch normalisation does."""
    seen = []
    monkeypatch.setattr(
        "nml_kit.tuning.tune.nmtune_terms", lambda Z, F: seen.append((Z.detach(), F)) or nmtune_terms(Z, F)
    )
    tuned(task, store, method=method, weights=(1.0, 0.0, 0.0), epochs=1)
    Z, F = seen[0]
    torch.testing.assert_close(Z, F, rtol=0, atol=1e-5)
    assert nmtune_terms(Z, F)[0].item() < 1e-9
    assert nmtune_terms(F, F)[0].item() < 1e-25
    assert not torch.equal(seen[-1][0], seen[-1][1])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_one_seed_gives_one_result(method, task, store):
    settings = {"method": method, "weights": 0.01}
    state = torch.get_rng_state()
    first, again, other = (weights_of(tuned(task, store, random_state=seed, **settings)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["W"], other["W"])
    assert torch.equal(torch.get_rng_state(), state)


def test_adapters_leave_frozen_weights_to_the_bit_and_merge_into_them():
    network = load_backbone("torchvision:resnet18/random", seed=0, transform=SMALL).encode
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, plain = copy.deepcopy(network.state_dict()), network(images).detach()
    adapted = add_adapters(network, 2, 0)
    network.eval()
    torch.testing.assert_close(network(images), plain)  # adapters start at zero
    trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * sum(isinstance(module, nn.Conv2d) for name, module in network.named_modules()
                                   if name.endswith("base_layer"))  # fmt: skip
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        network(images).square().sum().backward()
        optimizer.step()
    held = {name.replace(".base_layer", ""): value for name, value in network.state_dict().items()}
    assert all(torch.equal(held[name], value) for name, value in before.items())
    unmerged = network(images).detach()
    adapted.merge_and_unload()
    merged = network(images).detach()
    assert (unmerged - plain).abs().max() > 0.01
    torch.testing.assert_close(merged, unmerged, rtol=1e-5, atol=1e-5 * float(unmerged.abs().max()))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name in adapted_layers(network)}


def test_lora_trains_fewer_parameters_and_counts_them(task, store):
    full, lora = (tuned(task, store, method=method, rank=2, epochs=1) for method in ("full", "lora"))
    network = full.backbone.encode
    classifier = 4 * 64 + 4
    assert full.trained_parameters == sum(weight.numel() for weight in network.parameters()) + classifier
    adapters = sum(
        2 * (module.in_channels * module.kernel_size[0] ** 2 + module.out_channels)
        for module in network.modules() if isinstance(module, nn.Conv2d)
    )  # fmt: skip
    assert lora.trained_parameters == adapters + classifier


def test_batch_normalisation_keeps_its_statistics(task, store):
    backbone = load_backbone("compact-resnet:8", seed=0, transform=SMALL)
    for method in ("full", "lora"):
        state = tuned(task, store, method=method).backbone.encode.state_dict()
        for name, value in backbone.encode.state_dict().items():
            if "running" in name or "num_batches" in name:
                assert torch.equal(value, state[name])
            elif "norm" in name:
                assert torch.equal(value, state[name]) == (method == "lora")


def test_a_fold_chooses_the_samples_and_their_labels(task, store):
    backbone = load_backbone("compact-resnet:8", seed=0, transform=SMALL)
    fold = Fold(task.name, "OOD", ("bright",), ("dark",), fraction=0.5, label_noise=0.2)
    model = fine_tune(task, backbone, quick(), fold=fold, store=store, progress=False)
    features = extract_features(task, backbone, store=store, progress=False)
    chosen = samples_to_train(features, fold)
    labels = task.labels.copy()
    labels[np.searchsorted(task.ids, chosen.ids)] = chosen.labels
    kept = replace(task, labels=labels).take(np.isin(task.ids, chosen.ids))
    alone = fine_tune(kept, backbone, quick(), store=store, progress=False)
    assert all(torch.equal(value, weights_of(alone)[name]) for name, value in weights_of(model).items())
    test = samples_to_test(features, fold)
    found = with_features_of(model.backbone, task, test)
    assert (found.ids == test.ids).all()
    dark = task.select(split="test", domains=["dark"])
    np.testing.assert_array_equal(found.values, model.backbone(dark.images))


def test_a_sentence_encoder_is_tuned_on_texts(store):
    pytest.importorskip("all_minilm_l6_v2")
    texts = load_task("emoji-text").limit(classes=3, train_per_class=6, seed=0)
    texts = texts.take(np.sort(np.argsort(texts.splits != "train", kind="stable")[:40]))
    encoder = load_backbone("packaged:all-minilm-l6-v2")
    np.testing.assert_allclose(
        encoder.encode.embed(texts.captions[:5]).detach(), encoder(texts.captions[:5]), rtol=0, atol=1e-5
    )
    model = fine_tune(texts, encoder, quick(method="lora", epochs=2), store=store, progress=False)
    assert model.head.loss_curve_[-1] < model.head.loss_curve_[0]
    assert model.backbone.fingerprint != encoder.fingerprint
    assert model.predict(texts.captions[:5]).shape == (5,)
    assert fingerprint_weights(encoder.encode) == encoder.fingerprint


def test_a_transformer_with_torchs_attention_is_tuned(task, store):
    from torchvision.models import VisionTransformer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=2)
    network.heads = nn.Identity()
    assert set(adapted_layers(network)) == {
        "conv_proj", *(f"encoder.layers.encoder_layer_0.mlp.{layer}" for layer in (0, 3))
    }  # fmt: skip
    backbone = load_backbone(network.eval(), transform=SMALL)
    for method in ("full", "lora"):
        model = fine_tune(task, backbone, quick(method=method), store=store, progress=False)
        assert model.head.loss_curve_[-1] < model.head.loss_curve_[0]


@pytest.mark.parametrize("strange", ["0", "zzz"])
def test_features_of_another_task_are_refused(strange, task, store):
    backbone = load_backbone("compact-resnet:8", seed=0, transform=SMALL)
    features = extract_features(task, backbone, store=store, progress=False).take(np.arange(8))
    other = replace(features, task="other", ids=np.array([*features.ids[:7], strange]))
    for use in (lambda: with_features_of(backbone, task, other), lambda: tune_on(task, backbone, other, quick())):
        with pytest.raises(
            InvalidInputError, match=f"task '{task.name}', got features of 'other' with the id '{strange}'"
        ):
            use()
    np.testing.assert_array_equal(with_features_of(backbone, task, features).values, features.values)


def test_a_black_box_cannot_be_tuned(task):
    black_box = load_backbone(lambda images: images.mean((1, 2)), fingerprint_of_weights="grey")
    with pytest.raises(InvalidInputError, match="got a black box"):
        fine_tune(task, black_box, quick())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank of at least 1"), ({"epochs": 0}, "epochs of at least 1"),
        ({"batch_size": 1}, "at least 2"), ({"learning_rate": -1.0}, "learning_rate of at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate"), ({"weight_decay": -1.0}, "weight_decay"),
        ({"weights": -1.0}, "weights of None"), ({"weights": (1.0, 2.0)}, "weights of None"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message, task):
    with pytest.raises(InvalidInputError, match=message):
        fine_tune(task, load_backbone("compact-resnet:8"), quick(**settings))


def test_an_unknown_method_and_a_divergence_are_named(task, store, monkeypatch):
    backbone = load_backbone("compact-resnet:8", seed=0, transform=SMALL)
    with pytest.raises(UnknownNameError, match="did you mean 'lora'"):
        fine_tune(task, backbone, quick(method="loar"))
    with pytest.raises(InvalidInputError, match=r"diverge|finite"):
        fine_tune(task, backbone, quick(learning_rate=1e9, epochs=4), store=store, progress=False)
    with pytest.raises(InvalidInputError, match='use method "full"'):
        add_adapters(nn.Sequential(nn.BatchNorm2d(3)), 4, 0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"nml_kit\[hub\]"):
        fine_tune(task, backbone, quick(method="lora"), store=store, progress=False)
