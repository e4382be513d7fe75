"""The examples with curl in docs/serving.md are answered by a service."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from pages import blocks
from run_dirs import RQ_FLAGS
from shop_runs import shop_run
from starlette.testclient import TestClient

from sidrec.serving.limits import Limits
from sidrec.serving.routes import create_app, routes
from sidrec.serving.service import Service
from sidrec.serving.store import Store

URL = "http://127.0.0.1:8000"


def calls() -> list[tuple[str, str, str | None, dict[str, str]]]:
    """(method, address, body, headers) of every curl of the page; the demo's items are those of the small shop."""
    examples = []
    for block in blocks("docs/serving.md", "sh"):
        for line in block.splitlines():
            program, *words = shlex.split(line)
            if program != "curl":
                continue
            flags = {flag: words.pop(words.index(flag) + 1) for flag in ("-X", "-d", "-H") if flag in words}
            (address,) = [word for word in words if word not in flags]
            body = flags.get("-d")
            for demo, small in (("b0056", "i5"), ("b0361", "i7"), ("b0007", "i9")):
                body = body and body.replace(demo, small)
            headers = dict([flags["-H"].split(": ")]) if "-H" in flags else {}
            examples.append((flags.get("-X", "POST" if body else "GET"), address, body, headers))
    return examples


@pytest.mark.slow
def test_every_example_is_answered(tmp_path: Path) -> None:
    run = shop_run(tmp_path, "assign", **RQ_FLAGS)
    shutil.copytree(run / "bundle", tmp_path / "bundles" / "next")
    store = Store.open(str(tmp_path / "store.db"))
    bundles = tmp_path / "bundles"
    service = Service(run / "bundle", store, Limits(), bundles=bundles, beside=bundles / "next")
    answers, numbers = {}, []  # numbers: of the items of every list, by example
    with TestClient(create_app(service), URL) as client:
        for method, address, body, headers in calls():
            answer = client.request(method, address, content=body, headers=headers)
            assert answer.status_code == 200, (address, answer.text)
            answers[method, address.removeprefix(URL)] = answer
            if address == f"{URL}/recommend":
                numbers.append([len(each["items"]) for each in answer.json()["lists"]])
    assert [3, 10] in numbers
    assert [5] in numbers  # drawn
    assert answers["POST", "/items"].json()["added"] == 1
    assert answers["DELETE", "/users/ann"].json()["events"] == 1


def test_every_route_has_an_example() -> None:
    shown = {(method, address.removeprefix(URL).split("?")[0].split("/")[1]) for method, address, _, _ in calls()}
    for route in routes.routes:
        path = route.path.split("/")[1]  # type: ignore[attr-defined]
        if path != "docs":
            for method in route.methods:  # type: ignore[attr-defined]
                assert (method, path) in shown
