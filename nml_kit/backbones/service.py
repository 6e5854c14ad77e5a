"""Texts embedded by a service over HTTP, in the format of OpenAI's embeddings that most of them speak."""

import os
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray

from nml_kit.backbones.backbone import Backbone, require_texts
from nml_kit.errors import InvalidInputError, MissingDependencyError, ServiceError
from nml_kit.store import fingerprint

KEY_VARIABLE = "NML_API_KEY"
_LONGEST_WAIT = 300.0  # seconds
_TEMPORARY = (408, 409, 425, 429)  # and all from 500: what may be gone when asked again
_SECRET = re.compile("key|token|secret|password|sig", re.IGNORECASE)


class _TryAgainError(Exception):
    """An answer that may be better next time; `seconds` to wait, if the service said so."""

    def __init__(self, problem: str, seconds: float | None = None) -> None:
        super().__init__(problem)
        self.seconds = seconds


@dataclass(eq=False)
class EmbeddingApi:
    """An embeddings service as an encoder of texts: `url` as "https://host/v1/embeddings", `model` as it names it.

    At most `texts_per_request` texts go at once, and `requests_per_second` requests (None: as fast as it answers).
    Busy or broken answers (408, 409, 425, 429, 5xx), timeouts of `timeout` seconds and lost connections are tried
    again, `attempts` times in all, after as long as the service says, or else twice as long each time from
    `first_wait` seconds. The key is read from the environment variable NML_API_KEY when it is sent, and kept nowhere.
    Raises InvalidInputError for another address or one that holds a secret.

    >>> load = EmbeddingApi("https://user:word@host/v1/embeddings", "small")
    Traceback (most recent call last):
    nml_kit.errors.InvalidInputError: Expected an address without user, password or key, which would be stored; set \
NML_API_KEY.
    """

    url: str
    model: str
    texts_per_request: int = 32
    requests_per_second: float | None = None
    attempts: int = 6
    first_wait: float = 1.0
    timeout: float = 60.0
    _free_at: float = field(default=0.0, init=False, repr=False)

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
        if self.texts_per_request < 1 or self.attempts < 1 or (self.requests_per_second or 1) <= 0:
            raise InvalidInputError("Expected at least one text a request, one attempt, and a rate above zero.")

    def __call__(self, texts: NDArray[np.str_]) -> NDArray[np.float32]:
        """Embeddings (N, D) of texts (N,).

        Raises ServiceError if the service refuses, stays busy, or answers with anything but a finite row for each text.
        """
        listed = require_texts(texts)
        starts = range(0, len(listed), self.texts_per_request)
        parts = [self._embedded(listed[start : start + self.texts_per_request]) for start in starts]
        if len(widths := {part.shape[1] for part in parts}) > 1:
            raise ServiceError(
                f"{self.name}: expected embeddings of one size, got {sorted(widths)}; the model changed."
            )
        return np.concatenate(parts)

    @property
    def name(self) -> str:
        """The name by which `load_backbone` knows it."""
        return f"{self.url}#{self.model}"

    def backbone(self) -> Backbone:
        """The service as a backbone, whose results are kept request by request while features are extracted."""
        served = {"service": self.url, "model": self.model}
        return Backbone(
            self.name, self, fingerprint(served), None, "embedding", settings=served, shard_rows=self.texts_per_request
        )

    @cached_property
    def _client(self) -> Any:
        try:
            import httpx
        except ImportError as error:
            raise MissingDependencyError("httpx is needed for an API: pip install 'nml_kit[api]'.") from error
        return httpx.Client(timeout=self.timeout)

    def _embedded(self, texts: list[str]) -> NDArray[np.float32]:
        try:
            from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random
        except ImportError as error:
            raise MissingDependencyError("tenacity is needed for an API: pip install 'nml_kit[api]'.") from error
        backing_off = wait_exponential(multiplier=self.first_wait, max=60.0) + wait_random(0.0, self.first_wait)

        def wait(state: Any) -> float:
            asked = state.outcome.exception().seconds
            return backing_off(state) if asked is None else asked

        tried = Retrying(
            stop=stop_after_attempt(self.attempts), wait=wait, retry=retry_if_exception_type(_TryAgainError),
            reraise=True,
        )  # fmt: skip
        try:
            return _embeddings(tried(self._answer, texts), texts, self.name)
        except _TryAgainError as error:
            raise ServiceError(
                f"{self.name}: no embeddings after {self.attempts} attempts, the last: {error}. What was extracted is "
                "kept: run again to go on."
            ) from None

    def _answer(self, texts: list[str]) -> Any:
        """The service's answer to one request."""
        client = self._client
        import httpx  # which the client has found

        self._keep_the_rate()
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = client.post(self.url, json={"model": self.model, "input": texts}, headers=headers)
        except httpx.TransportError as error:
            raise _TryAgainError(f"{type(error).__name__}: {error}") from None
        if answer.status_code == httpx.codes.OK:
            return answer
        said = f"status {answer.status_code}: {answer.text[:300]}"
        said = said.replace(key, "…") if key else said
        if answer.status_code < 500 and answer.status_code not in _TEMPORARY:
            raise ServiceError(
                f"{self.name}: expected embeddings, got {said}. Check address, model and {KEY_VARIABLE}."
            )
        seconds = _seconds(answer.headers.get("Retry-After"))
        if seconds is not None and seconds > _LONGEST_WAIT:
            raise ServiceError(
                f"{self.name}: asks to wait for {seconds:.0f} seconds, {said}. What was extracted is kept: run again "
                "then to go on."
            )
        raise _TryAgainError(said, seconds)

    def _keep_the_rate(self) -> None:
        if self.requests_per_second is not None:
            time.sleep(max(0.0, self._free_at - time.monotonic()))
            self._free_at = time.monotonic() + 1 / self.requests_per_second


def named_api(source: str) -> EmbeddingApi:
    """The service of "https://host/v1/embeddings#MODEL"; raises InvalidInputError."""
    url, _, model = source.partition("#")
    return EmbeddingApi(url, model)


def _embeddings(answer: Any, texts: list[str], name: str) -> NDArray[np.float32]:
    try:
        rows = {row["index"]: row["embedding"] for row in answer.json()["data"]}
        if sorted(rows) != list(range(len(texts))):
            raise ValueError(f"{len(rows)} embeddings for {len(texts)} texts")
        values = np.array([rows[index] for index in range(len(texts))], dtype=np.float32)
        if values.ndim != 2 or not values.shape[1]:
            raise ValueError(f"embeddings of shape {values.shape}")
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise ValueError(f"NaN, null or infinity for the text {texts[int(bad.argmax())][:60]!r}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ServiceError(
            f"{name}: expected a list of numbers for each text, as OpenAI's embeddings, got {type(error).__name__}: "
            f"{error}. What was extracted is kept."
        ) from error
    return values


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After header says, a number of seconds or a date; None if it says nothing."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(str(retry_after)) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
