"""A service that embeds texts over HTTP."""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from nml_kit.backbones.backbone import Backbone, library
from nml_kit.backbones.text import require_texts
from nml_kit.errors import InvalidInputError, ServiceError
from nml_kit.store import fingerprint

KEY_VARIABLE = "NML_API_KEY"
_TEMPORARY = (408, 409, 429)  # and all from 500: what openai's client tries again
_SECRET = re.compile("key|token|secret|password|sig", re.IGNORECASE)


@dataclass(frozen=True)
class EmbeddingApi:
    """An embeddings service as an encoder of texts: `url` as "https://host/v1/embeddings", `model` as it names it.

    At most `texts_per_request` texts go at once. Busy or broken answers, timeouts of `timeout` seconds and lost
    connections are tried again by openai's client, `attempts` times in all. The key is read from the environment
    variable NML_API_KEY when it is sent. Raises InvalidInputError for another address or one that holds a secret.

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
        settings = {"base_url": self.url, "timeout": self.timeout, "max_retries": self.attempts - 1}
        return library("openai", "api").OpenAI(api_key="of each request", **settings)

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
            advice = f"Check address, model and {KEY_VARIABLE}."
            return ServiceError(f"{self.name}: expected embeddings, got {problem}. {advice}")
        wait = error.response.headers.get("Retry-After")
        return self._given_up(f"{problem}, which asks to wait for {wait} seconds" if wait else problem)

    def _given_up(self, problem: str) -> ServiceError:
        return ServiceError(
            f"{self.name}: no embeddings after up to {self.attempts} attempts, the last: {problem}. What was "
            "extracted is kept: run again to go on."
        )
