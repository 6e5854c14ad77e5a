"""Embeddings over HTTP, from a real server that this test starts and that fails as told."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from nml_kit import Store, Task, extract_features, load_backbone
from nml_kit.backbones import EmbeddingApi, ImageTransform
from nml_kit.backbones.service import KEY_VARIABLE
from nml_kit.errors import InvalidInputError, ServiceError

pytest.importorskip("openai", reason="needs nml_kit[api]")
KEY = "sk-very-secret-0123456789"


def embedding(text: str, size: int = 4) -> list[float]:
    return [float(len(text)), *(float(ord(letter)) for letter in text[-2:].rjust(2)), *([0.5] * (size - 3))]


class Service:
    """An embeddings service; `faults` are used up, one a request, before it answers well."""

    def __init__(self) -> None:
        self.faults: list = []
        self.asked: list[list[str]] = []
        self.served: list[str] = []
        self.headers: list = []
        self.times: list[float] = []
        self.size = 4
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.times.append(time.monotonic())
                service.asked.append(content["input"])
                service.headers.append(self.headers)
                fault = service.faults.pop(0) if service.faults else None
                status, extra, body = (fault or service.good)(content["input"])
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **extra}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/embeddings"

    def good(self, texts):
        self.served += texts
        rows = [{"index": index, "embedding": embedding(text, self.size)} for index, text in enumerate(texts)]
        return 200, {}, json.dumps({"data": rows[::-1], "model": "small"})  # the index counts, not the order


def status(code, body="", **headers):
    return lambda texts: (code, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def slow(texts):
    time.sleep(1.0)
    return 200, {}, "too late"


def rows_of(change):
    """A good answer whose data have been changed."""
    return lambda texts: (200, {}, json.dumps({"data": change([
        {"index": index, "embedding": embedding(text)} for index, text in enumerate(texts)
    ])}))  # fmt: skip


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    running = Service()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def texts() -> Task:
    captions = np.array([f"text number {row}" for row in range(100)])
    ids, labels = np.array([f"t{row:03d}" for row in range(100)]), np.arange(100) % 2
    return Task("texts", ids, labels, ("a", "b"), captions, np.full(100, "d"), np.array(["train", "test"] * 50))


def api(service, **options):
    return EmbeddingApi(service.url, "small", **{"texts_per_request": 10, "timeout": 0.4, **options})


def extract(task, backbone, store):
    return extract_features(task, backbone, store=store, progress=False)


def test_a_name_is_enough_and_rows_belong_to_their_texts(service, texts, tmp_path, monkeypatch):
    backbone = load_backbone(f"{service.url}#small")
    found = extract(texts, backbone, Store(tmp_path))
    np.testing.assert_array_equal(found.values, [embedding(text) for text in texts.captions.tolist()])
    assert [len(asked) for asked in service.asked] == [32, 32, 32, 4]
    assert service.headers[0]["Authorization"] == f"Bearer {KEY}"
    monkeypatch.delenv(KEY_VARIABLE)
    backbone(texts.captions[:1])
    assert "Authorization" not in service.headers.pop()
    service.asked.pop()
    assert load_backbone(api(service)).key == backbone.key
    extract(texts, load_backbone(api(service)), Store(tmp_path))
    assert len(service.asked) == 4


@pytest.mark.parametrize(
    "faults",
    [[status(429)], [status(429, Retry_After="0")], [status(500), status(503, "<html>")], [slow],
     [status(408), slow, status(502)]],
    ids=["429", "429 with Retry-After", "500 503", "timeout", "all sorts"],
)  # fmt: skip
def test_passing_troubles_are_tried_again(service, texts, tmp_path, faults):
    service.faults = list(faults)
    found = extract(texts, load_backbone(api(service)), Store(tmp_path))
    assert len(service.asked) == 10 + len(faults)
    np.testing.assert_array_equal(found.values, [embedding(text) for text in texts.captions.tolist()])


def test_it_waits_as_long_as_it_is_told(service, texts):
    service.faults = [status(429, Retry_After="1")]
    load_backbone(api(service))(texts.captions[:3])
    assert 1.0 <= service.times[1] - service.times[0] < 2.0
    service.faults = [status(429, "daily quota", Retry_After="3600")]
    with pytest.raises(ServiceError, match="status 429: daily quota, which asks to wait for 3600 seconds"):
        load_backbone(api(service))(texts.captions[:3])
    assert len(service.asked) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(401, f"Incorrect key {KEY}"), r"status 401: Incorrect key …\. Check address, model and NML_API_KEY"),
        (status(400, "no such model"), "status 400: no such model"),
        (status(200, "<html>"), "as OpenAI's embeddings, got JSONDecodeError"),
        (rows_of(lambda rows: rows[1:]), "9 embeddings for 10 texts"),
        (rows_of(lambda rows: rows + rows[:1] if rows[0].update(index=1) else rows), "9 embeddings for 10 texts"),
        (rows_of(lambda rows: [{**row, "embedding": [float("nan")] * 4} for row in rows]), "text 'text number 30'"),
        (rows_of(lambda rows: [{**row, "embedding": [1.0, None]} for row in rows]), "NaN, null or infinity"),
        (rows_of(lambda rows: [*rows[:-1], {**rows[-1], "embedding": [1.0]}]), "got ValueError"),
        (rows_of(lambda rows: [{**row, "embedding": [1.0] * 5} for row in rows]), r"expected 4 features.*got 5"),
    ],
    ids=["401", "400", "no JSON", "too few", "one twice", "NaN", "null", "ragged", "another size"],
)  # fmt: skip
def test_an_error_loses_nothing_of_what_was_paid_for(service, texts, tmp_path, fault, message):
    service.faults = [None, None, None, fault]
    with pytest.raises((ServiceError, InvalidInputError), match=message) as caught:
        extract(texts, load_backbone(api(service)), Store(tmp_path))
    assert KEY not in str(caught.value)
    assert len(service.served) == 30
    # Another size of requests: rows are kept, not requests.
    found = extract(texts, load_backbone(api(service, texts_per_request=7)), Store(tmp_path))
    assert sorted(service.served) == sorted(texts.captions.tolist())  # each once
    np.testing.assert_array_equal(found.values, [embedding(text) for text in texts.captions.tolist()])


def test_a_service_that_stays_down_is_given_up_and_resumed(service, texts, tmp_path):
    service.faults = [None, *[status(503, "overloaded")] * 3]
    with pytest.raises(ServiceError, match=r"after up to 3 attempts, the last: status 503: overloaded.*run again"):
        extract(texts, load_backbone(api(service, attempts=3)), Store(tmp_path))
    assert len(service.asked) == 4
    extract(texts, load_backbone(api(service)), Store(tmp_path))
    assert sorted(service.served) == sorted(texts.captions.tolist())


def test_a_model_that_changed_between_runs_is_found_at_its_first_answer(service, texts, tmp_path):
    service.faults = [None, status(400)]
    with pytest.raises(ServiceError):
        extract(texts, load_backbone(api(service)), Store(tmp_path))
    service.size = 6
    with pytest.raises(InvalidInputError, match=r"expected 4 features.*got 6 from 't010'.*nml store prune"):
        extract(texts, load_backbone(api(service)), Store(tmp_path))
    assert len(service.asked) == 3
    assert Store(tmp_path).prune()
    assert extract(texts, load_backbone(api(service)), Store(tmp_path)).values.shape == (100, 6)


def test_no_one_answers_there(service, texts):
    with pytest.raises(ServiceError, match="after up to 2 attempts, the last: ConnectError"):
        load_backbone(EmbeddingApi("http://127.0.0.1:9/v1", "m", attempts=2))(texts.captions[:1])


def test_the_key_is_kept_nowhere(service, texts, tmp_path):
    backbone = load_backbone(api(service))
    extract(texts, backbone, Store(tmp_path))
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert service.url.encode() in kept  # what is kept is there
    assert KEY.encode() not in kept
    assert KEY not in f"{backbone} {backbone!r} {backbone.key} {vars(backbone.encode)}"


@pytest.mark.parametrize(
    "name",
    ["https://host/v1/embeddings", "https:///v1#model", "https://me:word@host/v1#m", "https://host/v1?api_key=k#m"],
)
def test_addresses_without_model_or_with_a_secret_are_refused(name):
    with pytest.raises(
        InvalidInputError, match=r"Expected an address (and a model|without user, password or key)"
    ) as e:
        load_backbone(name)
    assert "word" not in str(e.value).replace("password", "")


def test_an_argument_that_cannot_act_on_a_service_is_refused():
    url = "https://host/v1/embeddings"
    for source in (f"{url}#m", EmbeddingApi(url, "m")):
        for name, value in {"transform": ImageTransform(), "fingerprint_of_weights": "v1", "seed": 0}.items():
            with pytest.raises(
                InvalidInputError, match=f"expected no `{name}`, which acts on .* alone, got .*leave it out"
            ):
                load_backbone(source, **{name: value})


def test_images_are_refused(service):
    with pytest.raises(InvalidInputError, match="Expected texts"):
        load_backbone(api(service))(np.zeros((2, 4, 4, 3), dtype=np.uint8))
    assert not service.asked
