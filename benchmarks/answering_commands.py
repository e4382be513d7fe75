"""The commands that are no stage of a run: what recommends, serves, compares, exports, and changes a catalogue; each on a small run."""

from __future__ import annotations

import http.client
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SECONDS = 30  # for an answer of the service
TOKENIZED = ("data", "embeddings", "sid")
MODEL = (*TOKENIZED, "sft")


@dataclass(frozen=True)
class Answering:
    """line: behind `-m sidrec`; {} stands for the run directory and {raw} for the folder of others' files. reads: folders of the run
    directory. answers: files in it that are the answer, patterns; none: what is printed. writes: what it changes in folders that it reads.
    run: of which small run the directory is a copy."""

    line: str
    reads: tuple[str, ...]
    answers: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    run: str = "run"

    def command(self, run_dir: Path, raw: Path) -> list[str]:
        words = shlex.split(self.line.replace("{raw}", "\0"))
        return ["-m", "sidrec", *(word.replace("{}", str(run_dir)).replace("\0", str(raw)) for word in words)]


STORE = "--store {}/store/store.db"
CATALOGUE = ("bundle/catalogue",)
VERSION = ("bundle/catalogue/0003/items.parquet", "bundle/catalogue/0003/semantic_ids/codes_all.npy")
ANSWERING = {
    "recommend": Answering("recommend --run_dir {} --user u3 --model sft", MODEL),
    "recommend to all": Answering(
        "recommend --run_dir {} --all_users --model sft --where \"title LIKE '%1%'\" --output {}/answer.csv",
        MODEL,
        ("answer.csv",),
    ),
    "recommend by bundle": Answering("recommend --bundle {}/bundle --history 'tea number 3'", ("bundle",)),
    "recommend by bundle to users": Answering(
        "recommend --bundle {}/bundle --log {raw}/log.csv --users {raw}/users.txt --output {}/answer.parquet",
        ("bundle",),
        ("answer.parquet",),
    ),
    "compare": Answering("compare ranks {}:sft {}:item_knn", (*MODEL, "evaluation")),
    "compare models": Answering(
        "compare {}:sft {}/bundle --log {raw}/later.csv --newest 1 --output {}/answer.json",
        (*MODEL, "bundle"),
        ("answer.json",),
    ),
    "ask": Answering("ask 'drum number 3' --run_dir {}", MODEL, run="asked"),
    "drift": Answering(f"drift {STORE} --run_dir {{}} --output {{}}/answer.json", (*MODEL, "store"), ("answer.json",)),
    "drift by bundle": Answering(
        f"drift {STORE} --bundle {{}}/bundle --output {{}}/answer.json", ("bundle", "store"), ("answer.json",)
    ),
    "export-events": Answering(f"export-events {STORE} --output {{}}/answer.csv", ("store",), ("answer.csv",)),
    "export-lists": Answering(f"export-lists {STORE} --output {{}}/answer.jsonl", ("store",), ("answer.jsonl",)),
    "keys": Answering(f"keys {STORE} --list true", ("store",)),
    "catalogue": Answering("catalogue --bundle {}/bundle", ("bundle",)),
    "add-items": Answering("add-items {raw}/new.csv --bundle {}/bundle", ("bundle",), VERSION, CATALOGUE),
    "remove-items": Answering("remove-items i3 i4 --bundle {}/bundle", ("bundle",), VERSION, CATALOGUE),
    "update": Answering(
        "update --run_dir {} --interactions {raw}/later.csv --passes 1",
        MODEL,
        ("updates/0001/sft/model.safetensors",),
        ("updates",),
    ),
    "export": Answering(
        "export --run_dir {} --format onnx", MODEL, ("export/onnx/model.onnx",), ("export",), run="rq_run"
    ),
    "serve": Answering("serve {}/bundle --store {}/served/served.db --port 0", ("bundle",), writes=("served",)),
}


class Served:
    """To be asked with what `sidrec serve` has printed so far: whether it has answered a request. answer: the items of its list."""

    answer = ""

    def __call__(self, said: str) -> bool:
        listening = re.search(r"^serve: .* at (http://\S+), its description", said, re.MULTILINE)
        if listening is None:
            return False
        address = urlsplit(listening[1])
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=SECONDS)
        body: dict[str, Any] = {"requests": [{"history": ["i1", "i2"], "k": 5}]}
        try:
            connection.request("POST", "/recommend", json.dumps(body), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.answer = f"no answer: {error}"
            return True
        lists = answer.get("lists", [])
        self.answer = json.dumps([[item["item_id"] for item in each["items"]] for each in lists] or answer)
        return True
