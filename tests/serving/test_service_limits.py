"""What the service refuses: too large, too many, too strange. No request is answered with 500."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from run_dirs import exit_code, finished_rq_run
from starlette.testclient import TestClient

from benchmarks.hostile_requests import hostile_requests
from sidrec.pipeline.errors import InputError
from sidrec.serving.access import is_loopback
from sidrec.serving.limits import Limits, host_of
from sidrec.serving.routes import create_app
from sidrec.serving.service import Service
from sidrec.serving.store import Store

URL = "http://127.0.0.1"
LIMITS = Limits(max_concurrency=3, max_body_bytes=20_000, max_k=20, max_history=30, max_requests=4, max_events=5)
EVENT = {"event_id": "e", "user_id": "u", "item_id": "i1", "timestamp": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("limits") / "run"
    shutil.copytree(finished_rq_run(tmp_path_factory), run)
    assert exit_code("serving/make_bundle.py", "--run_dir", run) == 0
    return run / "bundle"


@pytest.fixture
def service(bundle: Path, tmp_path: Path) -> Service:
    return Service(bundle, Store.open(str(tmp_path / "store.db")), LIMITS, bundles=tmp_path)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service, frozenset({"127.0.0.1"})), URL, raise_server_exceptions=False) as client:
        yield client


def asked(**changed: Any) -> dict[str, Any]:
    return {"requests": [{"history": ["i1"]} | changed]}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/recommend", asked(k=21), "requests[0].k is 21, above the 20"),
        ("/recommend", asked(k=0), "requests.0.k: Input should be greater than or equal to 1"),
        ("/recommend", asked(k="5"), "requests.0.k: Input should be a valid integer"),
        ("/recommend", asked(k=True), "requests.0.k"),
        ("/recommend", asked(history=["i1"] * 31), "requests[0].history is 31, above the 30"),
        ("/recommend", asked(user="ann"), "give user or history, one of the two"),
        ("/recommend", {"requests": [{"k": 3}]}, "give user or history"),
        ("/recommend", {"requests": [{"history": []}] * 5}, "requests is 5, above the 4"),
        ("/recommend", {"requests": []}, "at least 1 item"),
        ("/recommend", asked(user=None, prompt="x"), "prompt: Extra inputs are not permitted"),
        ("/recommend", asked(diversity=0), "diversity"),
        ("/recommend", asked(where=[{"column": "no", "op": "=", "value": 1}]), "the items have no column 'no'"),
        ("/recommend", asked(where=[{"column": "title", "op": "~", "value": "x"}]), "'~' is no op"),
        ("/recommend", asked(where=[{"column": "title", "op": "=", "value": 1}]), "its value must be a text"),
        ("/recommend", asked(where="title = 'x'"), "Input should be a valid list"),
        ("/recommend", asked(where=[{"column": "title", "op": "in", "value": ["x"] * 201}]), "at most 200"),
        ("/recommend", asked(where=[{"column": "title", "op": "=", "value": "x"}] * 21), "at most 20"),
        ("/events", {"events": [EVENT] * 6}, "events is 6, above the 5"),
        ("/events", {"events": [EVENT | {"timestamp": 10**30}]}, "timestamp"),
        ("/events", {"events": [EVENT | {"user_id": " "}]}, "must be a text of 1 to 512 characters"),
        ("/events", {"events": [EVENT | {"item_id": "a\0"}]}, "a character that no database holds"),
        ("/admin/bundle", {"bundle": "../x"}, "there is no bundle '../x' below the folder of --bundles"),
        ("/items", {"items": [{"item_id": "n1", "colour": "red"}]}, ""),
    ],
)
def test_what_is_above_a_limit_or_fits_nothing_is_named(
    client: TestClient, service: Service, path: str, body: Any, words: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert client.get("/healthz").status_code == 200


def test_a_body_above_the_limit_is_413_with_and_without_its_length(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    for content in (b" " * 20_001, chunks()):
        answer = client.post("/events", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert (
        client.post("/events", content=b" " * 20_000, headers={"Content-Type": "application/json"}).status_code == 422
    )
    assert client.post("/events", content=json.dumps({"events": [EVENT]})).status_code == 422  # not said to be JSON


def test_more_requests_than_are_answered_at_one_time_are_429(client: TestClient, service: Service) -> None:
    gate, work = threading.Event(), service.batcher.work

    def waiting(jobs: Any) -> Any:
        gate.wait(20)
        return work(jobs)

    service.batcher.work = waiting
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(client.post, "/recommend", json=asked()) for _ in range(3)]
        give_up = time.monotonic() + 20
        while "sidrec_requests_in_flight 3.0" not in client.get("/metrics").text:  # which is not one of them
            assert time.monotonic() < give_up
        refused = client.post("/recommend", json=asked())
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200
        gate.set()
        assert [answer.result().status_code for answer in answers] == [200] * 3
    assert client.post("/recommend", json=asked()).status_code == 200


def test_without_keys_it_answers_under_its_loopback_name_alone(client: TestClient) -> None:
    assert client.get("/items", headers={"Host": "evil.example:8000"}).status_code == 421
    assert client.get("/items", headers={"Host": "127.0.0.1:8000"}).status_code == 200
    assert [host_of(host) for host in (b"LocalHost:80", b"[::1]:8000", b"")] == ["localhost", "::1", ""]
    assert [is_loopback(host) for host in ("127.0.0.9", "::1", "localhost", "0.0.0.0", "shop.example")] == [
        True
    ] * 3 + [False] * 2


def test_hostile_requests_are_never_500_and_change_no_table(client: TestClient, service: Service) -> None:
    statuses: dict[int, int] = {}
    for request in hostile_requests(1500, seed=1):
        answer = client.request(request.method, request.path, content=request.body, headers=request.headers)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (request, answer.text)
    assert statuses[200] > 20
    assert statuses[422] > 300
    assert {400, 404, 405, 413} <= statuses.keys()
    assert client.post("/recommend", json=asked()).json()["lists"][0]["items"]
    assert service.store.counts().catalogue_versions == 1


def test_a_hostile_event_is_as_harmless_to_either_database(bundle: Path, location: str) -> None:
    service = Service(bundle, Store.open(location), LIMITS)
    with TestClient(create_app(service), URL, raise_server_exceptions=False) as client:
        for request in hostile_requests(600, seed=2):
            if request.path in ("/events", "/recommend"):
                answer = client.request(request.method, request.path, content=request.body, headers=request.headers)
                assert answer.status_code < 500, (request, answer.text)


def test_a_service_without_bundles_switches_to_none(bundle: Path, tmp_path: Path) -> None:
    service = Service(bundle, Store.open(str(tmp_path / "store.db")), LIMITS)
    with pytest.raises(InputError, match="without --bundles"):
        service._below_bundles("x")
    service.batcher.close()
