"""Frozen encoders of texts, or images: transformers and sentence-transformers, and services that embed over HTTP."""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from nml_kit.backbones.backbone import Backbone, freeze, library, weights_of
from nml_kit.backbones.networks import seeded
from nml_kit.backbones.transforms import LibraryTransform, Transform
from nml_kit.errors import DataFileError, InvalidInputError, ServiceError, unknown_name
from nml_kit.store import fingerprint

KEY_VARIABLE = "NML_API_KEY"
POOLINGS = ("mean", "cls", "last", "pooler")
_TEXTS_AT_ONCE = 32
# What says where a model came from, not what it computes.
_ORIGIN = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id")
_TEMPORARY = (408, 409, 429)  # and all from 500: what openai's client tries again
_SECRET = re.compile("key|token|secret|password|sig", re.IGNORECASE)


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


def hub_backbone(source: str, transform: Transform | None) -> Backbone:
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
        encoder = HubEncoder(model, pooling) if takes_images else HubTextEncoder(name, model, pooling)
        if isinstance(encoder, HubTextEncoder):
            transform = None
            settings |= {"tokenizer": _tokenizer_hash(encoder.tokenizer), "max_length": encoder.max_length}
        else:
            transform = transform or _image_processor(name)
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


def sentence_backbone(source: str) -> Backbone:
    """ "sentence-transformers:NAME", on the hub or a directory: what `encode` returns."""
    sentence_transformers = library("sentence_transformers", "hub")
    with weights_of(source):
        model = sentence_transformers.SentenceTransformer(source.partition(":")[2], device="cpu")
    return SentenceEncoder(model).frozen(source)


@dataclass(frozen=True)
class EmbeddingApi:
    """An embeddings service as an encoder of texts: `url` as "https://host/v1/embeddings", `model` as it names it.

    At most `texts_per_request` texts go at once. Busy or broken answers, timeouts of `timeout` seconds and lost
    connections are tried again by openai's client, `attempts` times in all, after as long as the service says. The key
    is read from the environment variable NML_API_KEY when it is sent, and kept nowhere.
    Raises InvalidInputError for another address or one that holds a secret.

    >>> load = EmbeddingApi("https://user:word@host/v1/embeddings", "small")
    Traceback (most recent call last):
    nml_kit.errors.InvalidInputError: Expected an address without user, password or key, which would be stored; set \
NML_API_KEY.
    """

    url: str
    model: str
    texts_per_request: int = 32
    attempts: int = 6
    timeout: float = 60.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if "@" in parts.netloc or any(map(_SECRET.search, parse_qs(parts.query, keep_blank_values=True))):
            raise InvalidInputError(
                f"Expected an address without user, password or key, which would be stored; set {KEY_VARIABLE}."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or not self.model:
            raise InvalidInputError(
                f"Expected an address and a model, as 'https://host/v1/embeddings#model', got {self.url!r} and "
                f"{self.model!r}."
            )
        if self.texts_per_request < 1 or self.attempts < 1:
            raise InvalidInputError("Expected at least one text a request and one attempt.")

    @property
    def name(self) -> str:
        """The name by which `load_backbone` knows it."""
        return f"{self.url}#{self.model}"

    def backbone(self) -> Backbone:
        """The service as a backbone, whose results are kept request by request while features are extracted."""
        served, rows = {"service": self.url, "model": self.model}, self.texts_per_request
        return Backbone(self.name, self, fingerprint(served), None, "embedding", None, served, shard_rows=rows)

    def __call__(self, texts: NDArray[np.str_]) -> Float[np.ndarray, "n d"]:
        """Embeddings float32 of texts (N,).

        Raises ServiceError if the service refuses, stays busy, or answers with anything but a finite row for each text.
        """
        openai, listed, size = library("openai", "api"), require_texts(texts), self.texts_per_request
        parts = [listed[start : start + size] for start in range(0, len(listed), size)]
        try:
            return np.concatenate([self._embedded(part) for part in parts])
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except openai.APIConnectionError as error:
            raise self._given_up(f"{type(error.__cause__ or error).__name__}: {error}") from None
        except (ValueError, LookupError, TypeError) as error:
            raise ServiceError(
                f"{self.name}: expected a list of numbers for each text, as OpenAI's embeddings, got "
                f"{type(error).__name__}: {error}. What was extracted is kept."
            ) from error

    @cached_property
    def _client(self) -> Any:
        retries = self.attempts - 1
        return library("openai", "api").OpenAI(
            api_key="of each request", base_url=self.url, timeout=self.timeout, max_retries=retries
        )

    def _embedded(self, texts: list[str]) -> NDArray[np.float32]:
        key, body = os.environ.get(KEY_VARIABLE), {"model": self.model, "input": texts}
        headers = {"Authorization": f"Bearer {key}" if key else library("openai", "api").Omit()}
        answer = self._client.post(self.url, body=body, cast_to=object, options={"headers": headers})
        rows = {row["index"]: row["embedding"] for row in answer["data"]}
        if sorted(rows) != list(range(len(texts))):
            raise ValueError(f"{len(rows)} embeddings for {len(texts)} texts")
        values = np.array([rows[index] for index in range(len(texts))], dtype=np.float32)
        if values.ndim != 2 or not values.shape[1]:
            raise ValueError(f"embeddings of shape {values.shape}")
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise ValueError(f"NaN, null or infinity for the text {texts[int(bad.argmax())][:60]!r}")
        return values

    def _refused(self, error: Any) -> ServiceError:
        key = os.environ.get(KEY_VARIABLE) or "no key"
        problem = f"status {error.status_code}: {error.response.text[:300].replace(key, '…')}"
        if error.status_code < 500 and error.status_code not in _TEMPORARY:
            return ServiceError(
                f"{self.name}: expected embeddings, got {problem}. Check address, model and {KEY_VARIABLE}."
            )
        wait = error.response.headers.get("Retry-After")
        return self._given_up(f"{problem}, which asks to wait for {wait} seconds" if wait else problem)

    def _given_up(self, problem: str) -> ServiceError:
        return ServiceError(
            f"{self.name}: no embeddings after up to {self.attempts} attempts, the last: {problem}. What was "
            "extracted is kept: run again to go on."
        )
