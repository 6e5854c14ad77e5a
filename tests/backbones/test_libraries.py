"""Backbones of other libraries: features are those that each library documents, and keys see what decides them."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nml_kit import Store, Task, extract_features, load_backbone
from nml_kit.backbones import ImageTransform
from nml_kit.errors import DataFileError, InvalidInputError, MissingDependencyError, UnknownNameError
from tests.miniatures import WORDS, add_tiny_clips, write_bert

timm = pytest.importorskip("timm", reason="needs nml_kit[models]")
open_clip = pytest.importorskip("open_clip", reason="needs nml_kit[models]")
SIZES = ((32, 48), (70, 40), (224, 224), (300, 260))
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def images():
    """Photographs in miniature: smooth, of several sizes."""
    generator = np.random.default_rng(0)
    found = np.empty(len(SIZES), dtype=object)
    for row, (height, width) in enumerate(SIZES):
        noise = generator.integers(0, 256, size=(7, 7, 3), dtype=np.uint8)
        found[row] = np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    return found


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True, scope="module")
def tiny_models(tmp_path_factory):
    add_tiny_clips(tmp_path_factory.mktemp("configs"))


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make().eval()


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_vit",
        "test_efficientnet",
        "test_convnext",
        "resnetv2_50x1_bit",
        "mobilenetv3_small_050",
        "deit_tiny_distilled_patch16_224",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_timm_features_are_those_that_timm_documents(name, images):
    model = seeded(lambda: timm.create_model(name, pretrained=False))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    batch = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(batch), pre_logits=True)
    found = load_backbone(f"timm:{name}/random", seed=3)(images)
    torch.testing.assert_close(found, expected.flatten(1), **TOLERANCE)


@pytest.mark.parametrize("name", ["nml-tiny-RN", "nml-tiny-ViT"])
def test_open_clip_features_are_those_of_encode_image(name, images):
    model = seeded(lambda: open_clip.create_model(name, load_weights=False))
    _, _, preprocess = open_clip.create_model_and_transforms(name, load_weights=False)
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([preprocess(Image.fromarray(image)) for image in images]))
    backbone = load_backbone(f"open_clip:{name}/random", seed=3)
    torch.testing.assert_close(backbone(images), expected, **TOLERANCE)
    assert backbone.layer == "encode_image"
    libraries = {"open_clip": open_clip.__version__}
    assert backbone.settings == {
        "architecture": name, "quick_gelu": name == "nml-tiny-ViT", "libraries": libraries}  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "swin_t", "maxvit_t"])
def test_torchvision_features_are_what_its_classifier_reads(name, images):
    models = pytest.importorskip("torchvision").models
    model = seeded(lambda: models.get_model(name, weights=None))
    preset = models.get_model_weights(name).DEFAULT.transforms()
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.inference_mode():
        logits = model(torch.stack([preset(Image.fromarray(image)) for image in images[:2]]))
        features = load_backbone(f"torchvision:{name}/random", seed=3)(images[:2])
        torch.testing.assert_close(last(features), logits, **TOLERANCE)


def test_a_library_transform_treats_an_array_of_one_size_as_images_one_by_one(images):
    backbone = load_backbone("timm:resnet10t/random")
    alone = np.stack([images[0], images[0][::-1]])
    many = np.empty(2, dtype=object)
    many[:] = list(alone)
    torch.testing.assert_close(backbone(alone), backbone(many), rtol=0, atol=0)
    ours = load_backbone("compact-resnet:8", transform=ImageTransform(resize=40, crop=32))
    torch.testing.assert_close(ours(many), ours(alone), **TOLERANCE)
    assert ours(images).shape == (len(SIZES), 64)
    with pytest.raises(InvalidInputError, match="gives all images one size"):
        load_backbone("compact-resnet:8")(images)
    with pytest.raises(InvalidInputError, match="a text encoder is for texts, an image encoder for images"):
        backbone(np.array(["a text", "another"]))


TEXTS = np.array(["a red cat sat", "the dog", "a cat and the red dog", "sat sat sat sat sat sat sat sat sat sat"])


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "pooler"])
def test_texts_are_pooled_as_stated(tmp_path, pooling):
    transformers = pytest.importorskip("transformers", reason="needs nml_kit[hub]")
    model = transformers.AutoModel.from_pretrained(write_bert(tmp_path)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = []
    with torch.inference_mode():
        for text in TEXTS.tolist():  # one by one: no padding, nothing to mask
            output = model(**tokenizer(text, truncation=True, max_length=8, return_tensors="pt"))
            states = output.last_hidden_state[0]
            expected.append({"mean": states.mean(0), "cls": states[0], "last": states[-1],
                             "pooler": output.pooler_output[0]}[pooling])  # fmt: skip
    backbone = load_backbone(f"hf:{tmp_path}" + ("" if pooling == "mean" else f"?pooling={pooling}"))
    torch.testing.assert_close(backbone(TEXTS), torch.stack(expected), **TOLERANCE)
    assert f"pooling: {pooling}" in str(backbone)
    assert "max_length: 8" in str(backbone)
    assert str(tmp_path) not in json.dumps(backbone.key)
    with pytest.raises(InvalidInputError, match="expected no `transform`, which acts on images alone"):
        load_backbone(backbone.name, transform=ImageTransform())


def test_a_decoder_without_padding_token_is_read_up_to_its_last_token(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs nml_kit[hub]")
    tokenizers = pytest.importorskip("tokenizers")
    rules = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, "[UNK]"))
    rules.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="[SEP]").save_pretrained(tmp_path)  # noqa: S106
    config = transformers.GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=16)
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        tokens = [torch.tensor([[WORDS.index(word) for word in text.split()]]) for text in TEXTS.tolist()]
        expected = torch.cat([model(row).last_hidden_state[:, -1] for row in tokens])
    torch.testing.assert_close(load_backbone(f"hf:{tmp_path}?pooling=last")(TEXTS), expected, **TOLERANCE)
    with pytest.raises(InvalidInputError, match="at least one token each"):
        load_backbone(f"hf:{tmp_path}")(np.array(["a", ""]))


@pytest.mark.parametrize("kind", ["ViT", "ResNet"])
def test_images_of_a_hub_model_are_prepared_by_its_own_processor(tmp_path, images, kind):
    transformers = pytest.importorskip("transformers", reason="needs nml_kit[hub]")
    sizes = {
        "ViT": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
                "image_size": 32, "patch_size": 8},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**sizes[kind])
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    with torch.inference_mode():
        output = model(**processor([Image.fromarray(image) for image in images], return_tensors="pt"))
    states = output.last_hidden_state
    expected = states.mean(1) if kind == "ViT" else states.mean((2, 3))
    backbone = load_backbone(f"hf:{tmp_path}")
    torch.testing.assert_close(backbone(images), expected, **TOLERANCE)
    assert backbone.key["transform"]["image_mean"] == [0.4, 0.5, 0.6]
    assert load_backbone(backbone.name, transform=(own := ImageTransform(resize=32, crop=32))).transform is own


def test_sentence_encoders_embed_as_their_library(tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="needs nml_kit[hub]")
    models = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    words = models.Transformer(str(write_bert(tmp_path / "bert")), max_seq_length=6)
    pooling = models.Pooling(16, pooling_mode="max")
    model = library.SentenceTransformer(modules=[words, pooling, models.Normalize()], device="cpu")
    model.save(str(tmp_path / "model"))
    backbone = load_backbone(f"sentence-transformers:{tmp_path / 'model'}")
    np.testing.assert_allclose(backbone(TEXTS).numpy(), model.encode(TEXTS.tolist()), **TOLERANCE)
    assert backbone.layer == "Pooling max, Normalize"
    assert backbone.settings["max_length"] == 6
    for name, value in {"transform": ImageTransform(), "seed": 0, "store": Store(tmp_path)}.items():
        with pytest.raises(InvalidInputError, match=f"expected no `{name}`"):
            load_backbone(backbone.name, **{name: value})


def save_timm(directory: Path, *, seed: int, name: str = "resnet10t", **changes) -> Path:
    """A timm model as its own hub format keeps it."""
    from timm.models import save_for_hf

    torch.manual_seed(seed)
    save_for_hf(timm.create_model(name), directory, model_config=changes or None)
    return directory


def a_task() -> Task:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    ids, two = np.array([f"s{row}" for row in range(6)]), np.array([0, 1] * 3)
    domains = np.full(6, "d")
    return Task("six", ids, two, ("a", "b"), ids, domains, np.array(["train", "test"] * 3), pixels)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A timm model in a directory, and the key of its features."""
    directory = save_timm(tmp_path_factory.mktemp("timm") / "model", seed=0)
    return directory, load_backbone(f"timm:local-dir:{directory}")


def features_key(task, backbone, dtype="float32"):
    from nml_kit.features.features import _features_key
    from nml_kit.store import fingerprint

    return fingerprint(_features_key(task, backbone, dtype))


def test_other_weights_change_the_key(first, tmp_path):
    other = load_backbone(f"timm:local-dir:{save_timm(tmp_path / 'model', seed=1)}")
    assert features_key(a_task(), other) != features_key(a_task(), first[1])
    assert other.key == first[1].key | {"weights": other.fingerprint}


def test_another_transform_changes_the_key(first, tmp_path):
    directory = shutil.copytree(first[0], tmp_path / "model")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["crop_pct"] = 0.5
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    other = load_backbone(f"timm:local-dir:{directory}")
    assert features_key(a_task(), other) != features_key(a_task(), first[1])
    assert other.fingerprint == first[1].fingerprint
    assert other.key["transform"]["crop_pct"] == 0.5


def test_another_layer_changes_the_key(first):
    assert features_key(a_task(), replace(first[1], layer="stages.2")) != features_key(a_task(), first[1])


def test_another_pooling_changes_the_key(tmp_path):
    write_bert(tmp_path)
    poolings = ("mean", "cls", "last", "pooler")
    found = [load_backbone(f"hf:{tmp_path}?pooling={pooling}") for pooling in poolings]
    assert len({features_key(a_task(), backbone) for backbone in found}) == 4
    assert len({backbone.fingerprint for backbone in found}) == 1


def test_another_dtype_changes_the_key(first):
    assert features_key(a_task(), first[1], "float16") != features_key(a_task(), first[1])


def test_one_byte_of_one_sample_changes_the_key(first):
    task, pixels = a_task(), a_task().image_data.copy()
    pixels[3, 0, 0, 0] ^= 1
    assert features_key(replace(task, image_data=pixels), first[1]) != features_key(task, first[1])


def test_files_moved_and_touched_leave_the_key(first, tmp_path):
    moved = shutil.copytree(first[0], tmp_path / "elsewhere" / "renamed")
    for path in moved.iterdir():
        os.utime(path, (1, 1))
    store = Store(tmp_path / "store")
    extract_features(a_task(), first[1], store=store, progress=False)
    again = extract_features(a_task(), load_backbone(f"timm:local-dir:{moved}"), store=store, progress=False)
    assert len(list(store.entries("features"))) == 1
    assert again.fingerprint == features_key(a_task(), first[1])


@pytest.mark.parametrize("change", [{"num_attention_heads": 4}, {"hidden_act": "relu"}])
def test_the_same_weights_in_another_architecture_change_the_key(tmp_path, change):
    one, other = (load_backbone(f"hf:{write_bert(tmp_path / str(n), **c)}") for n, c in enumerate([{}, change]))
    assert one.fingerprint == other.fingerprint
    assert features_key(a_task(), one) != features_key(a_task(), other)
    assert not torch.allclose(one(TEXTS), other(TEXTS), atol=1e-4)


def test_another_vocabulary_changes_the_key_and_another_place_does_not(tmp_path):
    one = load_backbone(f"hf:{write_bert(tmp_path / 'one')}")
    moved = load_backbone(f"hf:{shutil.copytree(tmp_path / 'one', tmp_path / 'two')}")
    assert moved.key == one.key
    rules = json.loads((tmp_path / "two" / "tokenizer.json").read_text(encoding="utf-8"))
    words = rules["model"]["vocab"]
    words["cat"], words["dog"] = words["dog"], words["cat"]
    (tmp_path / "two" / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    assert load_backbone(f"hf:{tmp_path / 'two'}").key != one.key


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("architecture", ["timm:resnet10t", "torchvision:resnet18"])
def test_weights_in_a_file_are_those_of_the_model(tmp_path, images, suffix, architecture):
    from nml_kit.backbones import build_network

    network = build_network(architecture, num_classes=7, seed=5)  # fine-tuned on seven classes
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    found, random = load_backbone(f"file:{path}#{architecture}"), load_backbone(f"{architecture}/random", seed=5)
    assert found.key["settings"] == random.key["settings"]
    assert found.key["transform"] == random.key["transform"]
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    for name, value in found.encode.state_dict().items():
        torch.testing.assert_close(value, body.pop(name), rtol=0, atol=0)
    assert not body
    assert found(images).shape == (len(SIZES), 512)


def test_an_open_clip_model_in_a_file(tmp_path, images):
    name = "nml-tiny-RN"
    torch.save(seeded(lambda: open_clip.create_model(name, load_weights=False)).state_dict(), tmp_path / "clip.pt")
    found = load_backbone(f"file:{tmp_path / 'clip.pt'}#open_clip:{name}")
    assert found.key == load_backbone(f"open_clip:{name}/random", seed=3).key


def test_files_that_are_not_the_weights_are_explained(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"stem.weight": torch.ones(2)}, path)
    with pytest.raises(DataFileError, match=r"expected the weights of timm:resnet10t, got a file without \d+ of its t"):
        load_backbone(f"file:{path}#timm:resnet10t")
    with pytest.raises(UnknownNameError, match="architecture after '#'"):
        load_backbone(f"file:{path}")
    with pytest.raises(DataFileError, match="got nothing there"):
        load_backbone(f"file:{tmp_path / 'no.pt'}#timm:resnet10t")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataFileError, match="without pickled code"):
        load_backbone(f"file:{path}#timm:resnet10t")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")  # a pickled module
    with pytest.raises(
        DataFileError, match=r"without pickled code.*torch\.nn\.modules\.linear\.Linear.*save it w"
    ) as caught:
        load_backbone(f"file:{tmp_path / 'whole.pt'}#timm:resnet10t")
    assert "weights_only=False" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("timm:resnet18/best", UnknownNameError, "timm weights of resnet18"),
        ("timm:resnet18.none", DataFileError, "timm:resnet18.none"),
        ("open_clip:RN50", UnknownNameError, "Unknown open_clip weights of RN50 .*yfcc15m"),
        ("open_clip:RN5000/yfcc15m", UnknownNameError, "Unknown open_clip model"),
        ("torchvision:resnet18/V9", DataFileError, "torchvision:resnet18/V9"),
        ("hf:no/such-model", DataFileError, "Expected the files of hf:no/such-model(.|\n)*Check the name, the path"),
        ("hf:bert-base-uncased?pooling=maen", UnknownNameError, "Known: pooling=cls, pooling=last, pooling=mean"),
        ("sentence-transformers:no/such", DataFileError, "Expected the files of sentence-transformers:no/such"),
    ],
)
def test_names_that_lead_nowhere_are_explained(name, error, message):
    with pytest.raises(error, match=message):
        load_backbone(name)


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("timm:resnet18", "timm", "models"), ("torchvision:resnet18", "torchvision", "models"),
     ("hf:bert-base-uncased", "transformers", "hub"), ("sentence-transformers:x", "sentence_transformers", "hub"),
     ("https://host/v1/embeddings#m", "openai", "api")],
)  # fmt: skip
def test_a_missing_library_is_named_with_its_extra(monkeypatch, name, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=rf"{library} .*pip install 'nml_kit\[{extra}\]'"):
        load_backbone(name)(TEXTS)


def test_weights_that_a_file_lacks_are_named(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs nml_kit[hub]")
    write_bert(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("pooler.")}
    model.save_pretrained(tmp_path, state_dict=kept)
    assert load_backbone(f"hf:{tmp_path}").key == load_backbone(f"hf:{tmp_path}").key
    with pytest.raises(DataFileError, match=r"without pooler\.dense"):
        load_backbone(f"hf:{tmp_path}?pooling=pooler")
    model.save_pretrained(tmp_path, state_dict={n: v for n, v in kept.items() if ".layer.1." not in n})
    with pytest.raises(DataFileError, match=r"without encoder\.layer\.1.*\(and more\)"):
        load_backbone(f"hf:{tmp_path}")


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    directory = write_bert(tmp_path / "bert")
    for path in (*directory.glob("tokenizer*"), *directory.glob("vocab*"), *directory.glob("special*")):
        path.unlink()
    with pytest.raises(DataFileError, match=r"tokenizer with the model .*bert.*put tokenizer\.json"):
        load_backbone(f"hf:{directory}")
