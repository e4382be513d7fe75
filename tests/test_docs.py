"""What the README, CONTRIBUTING.md and docs/ name exists: every path, every identifier, every flag, every link; the examples run.

A page may say what it likes outside of backticks. In backticks stands a path of the repository, a file that the code writes, a name
that the code defines, a text that the code holds (a setting's value, a column, a token), a flag, a command, or one of EXAMPLES.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import DOCS, GUIDES, PAGES, ROOT, anchors, backticks, blocks, links, text_of
from run_dirs import finished_sft_run

from sidrec.__main__ import COMMANDS
from sidrec.codec.command import WORDS
from sidrec.decoding.renderer import CONTROL_TOKENS

PACKAGE = ROOT / "src" / "sidrec"
FOLDERS = sorted({path.parent.name for path in ROOT.glob("*/__init__.py")} - {"configs"})
PROGRAMS = ("bash", "python", "sidrec", "accelerate")
OTHERS_FLAGS = {"config_file", "num_processes", "config", "help", "help-all"}  # accelerate's, and those of every stage
EXAMPLES = {
    "my_package.my_reward",  # a user's own function
    "ml-100k/",  # a folder with a user's data
    "kill -9",  # of the shell
    '{"0": ["<a_12>", "<b_7>"], …}',  # the layout of sid.json
    ".index.json",  # a file of MiniOneRec's
    *("--name value", "--name a b", "--name true"),  # how flags are written
}
DEMO_ID = r"[ub]\d{4,5}"
MOST_LINES_OF_THE_README = 170


# ---- what the code has


@cache
def trees() -> dict[str, ast.Module]:
    """The code by dotted name: the rooms as they are imported, benchmarks, and the tests but for those of the documentation."""
    files = {f"sidrec.{room}": ROOT / room for room in FOLDERS if room != "benchmarks"}
    files |= {"benchmarks": ROOT / "benchmarks", "tests": ROOT / "tests"}
    modules = {
        ".".join([name, *path.relative_to(folder).with_suffix("").parts]): path
        for name, folder in files.items()
        for path in folder.rglob("*.py")
        if path.stem not in ("test_docs", "test_readme", "pages")
    }
    modules |= {f"sidrec.{path.stem}": path for path in PACKAGE.glob("*.py")}
    return {
        name.removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8")) for name, path in modules.items()
    }


def defined_in(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Functions, classes and variables of a module or a class, by name; a class's bases' are not among them."""
    names: dict[str, ast.stmt] = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            names |= {node.id: statement for node in ast.walk(statement) if isinstance(node, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names[statement.target.id] = statement
        elif isinstance(statement, ast.ImportFrom):
            names |= {alias.asname or alias.name: statement for alias in statement.names}
    return names


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """Every class of the code, by name."""
    by_name: dict[str, list[ast.ClassDef]] = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                by_name.setdefault(node.name, []).append(node)
    return by_name


def has_member(class_name: str, member: str) -> bool:
    """Whether a class of the code, or a class of the code that it is made from, has the field or method."""
    for each in classes().get(class_name, []):
        bases = [base.id for base in each.bases if isinstance(base, ast.Name)]
        if member in defined_in(each.body) or any(has_member(base, member) for base in bases):
            return True
    return False


@cache
def known_names() -> set[str]:
    """Names that the code defines or imports, its functions' arguments, and its classes' fields."""
    names = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef):
                names |= set(defined_in(node.body))
            elif isinstance(node, ast.FunctionDef):
                names |= {node.name, *(argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))}
    return names


@cache
def known_texts() -> set[str]:
    """Texts that the rooms hold, and of the tests the names of environment variables and those of the house's rules."""
    texts = set()
    for name, tree in trees().items():
        held = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        if name.startswith("tests.") and name != "tests.test_house":
            held = {text for text in held if re.fullmatch(r"[A-Z]+_[A-Z_]+", text)}
        texts |= held
    return texts


@cache
def settings() -> set[str]:
    """Fields of the code's dataclasses that have a help string: the flags."""
    return {
        statement.target.id
        for group in classes().values()
        for each in group
        for statement in each.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and "help" in ast.dump(statement)
    }


# ---- what a word in backticks may be


def exists(word: str) -> bool:
    return (
        word in EXAMPLES
        or re.fullmatch(DEMO_ID, word) is not None
        or any(
            is_so(word)
            for is_so in (
                is_path,
                is_dotted_name,
                is_member,
                is_name,
                is_text,
                is_flag,
                is_command,
                is_semantic_id,
                is_import,
                is_route,
                is_metric,
            )
        )
    )


def is_path(word: str) -> bool:
    """Of the repository; `sidrec/decoding/trie.py` as it is imported. A bare file name is one in the root or in configs/."""
    if not re.fullmatch(r"[\w.*/-]+", word) or word.startswith("/") or ".." in word:
        return False
    if (ROOT / word).exists() or (ROOT / "src" / word).exists():
        return True
    return word.endswith(".yaml") and "/" not in word and any((ROOT / "configs").rglob(word))


def is_dotted_name(word: str) -> bool:
    """A module of the code, or what it defines: `sidrec.data.own.read_own`."""
    parts = word.split(".")
    for end in range(len(parts), 0, -1):
        tree = trees().get(".".join(parts[:end]))
        if tree is not None:
            rest = parts[end:]
            return not rest or (len(rest) == 1 and rest[0] in defined_in(tree.body))
    return False


def is_member(word: str) -> bool:
    """`Stage.building`, `exact=True` or `Recommender.recommend(…)`: a class's field or method, or an argument with a value."""
    match = re.fullmatch(r"(\w+)\.(\w+)(?:\(.*\))?", word)
    if match:
        return has_member(*match.groups())
    match = re.fullmatch(r"(\w+)=\w+", word)
    return match is not None and (match[1] in known_names() or match[1] in known_texts())


def is_name(word: str) -> bool:
    """A name that the code defines or uses from a library: `BASELINES`, `main(arguments)`, `generate()`."""
    return re.sub(r"\(.*\)$", "", word) in known_names()


def is_text(word: str) -> bool:
    """A value, a column, a file that the code writes, or the ending of one."""
    texts = known_texts()
    if all(part in texts for part in word.rstrip("/").split("/")):  # sid/report.html
        return True
    numbered = re.sub(r"_(\d+|\{.*\})$", "_", word)  # codebook_0
    return (word.startswith(".") and any(text.endswith(word) for text in texts)) or (
        numbered != word and numbered in texts
    )


def is_flag(word: str) -> bool:
    """`--unique own_token`, `--sft.learning_rate 0.001`: a setting of a stage, and values that the code knows or numbers or NAMES."""
    for part in word.split():
        if part.startswith("--"):
            name = part.removeprefix("--").rpartition(".")[2]
            if name not in settings() and name not in OTHERS_FLAGS:
                return False
        elif not is_value(part):
            return False
    return word.startswith("--")


def is_value(word: str) -> bool:
    return bool(re.fullmatch(r"-?[\d.]+|true|false|[A-Z]+", word)) or is_text(word) or word in EXAMPLES


def is_command(word: str) -> bool:
    """`sidrec add-items`, `python docs/draw_model.py`, `accelerate launch sft/train.py`: a program, and what it runs."""
    program, *words = word.split()
    if program not in PROGRAMS:
        return False
    if program == "sidrec" and words[0:1] == ["codec"] and words[1:2] not in ([], ["--help"]):
        return words[1] in WORDS and (len(words) == 2 or is_flag(" ".join(words[2:])))
    if program == "sidrec" and words:
        return words[0] in COMMANDS and (len(words) == 1 or is_flag(" ".join(words[1:])))
    targets = [each for each in words if each not in ("launch", "-m")]
    return not targets or is_path(targets[0]) or is_dotted_name(targets[0])


def is_semantic_id(word: str) -> bool:
    """`<history><a_0><b_21>`: tokens of codes, and the control tokens."""
    tokens = re.findall(r"<[^<>]+>", word)
    return (
        bool(tokens)
        and "".join(tokens) == word
        and all(token in CONTROL_TOKENS or re.fullmatch(r"<[a-h]_(\d+|…)>", token) for token in tokens)
    )


def is_import(word: str) -> bool:
    match = re.fullmatch(r"from ([\w.]+) import (\w+)", word)
    return match is not None and is_dotted_name(f"{match[1]}.{match[2]}")


def is_route(word: str) -> bool:
    """`POST /events`, `/healthz`, `DELETE /items/{item_id}`: of the service."""
    match = re.fullmatch(r"(?:(?:GET|POST|DELETE) )?(/[\w/{}]*)", word)
    return match is not None and bool({match[1], match[1].replace("}", ":path}")} & known_texts())


def is_metric(word: str) -> bool:
    """`sidrec_requests_total`: a counter of the service, as Prometheus names it."""
    return word.startswith("sidrec_") and word.removesuffix("_total") in known_texts()


@pytest.mark.parametrize("page", GUIDES)
def test_what_stands_in_backticks_exists(page: str) -> None:
    unknown = [word for word in backticks(page) if not exists(word)]
    assert not unknown, f"{page} names what is not there: {unknown}"


@pytest.mark.parametrize(
    "word",
    [
        *(
            "sidrec.data.own.read_yours",
            "sidrec.absent",
            "Stage.started",
            "READERS_OF_ALL",
            "data/absent.py",
            "absent.yaml",
        ),
        *(
            "--no_such_flag",
            "--unique nothing_of_the_kind",
            "sidrec publish",
            "GET /nothing",
            "sidrec_nothing_total",
            "bash run_all.sh",
            "<z_3>",
            "<b_7",
        ),
        *(
            "python docs/draw_all.py",
            "from sidrec.decoding.trie import Tree",
            "anchor_weight_of_old",
            "_checked",
            "DEFAULT_K",
        ),
    ],
)
def test_a_name_that_is_gone_is_noticed(word: str) -> None:
    assert not exists(word)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    targets = links(page)
    for target in targets:
        place, _, heading = target.partition("#")
        path = (ROOT / page).parent / place
        assert not place or path.exists(), f"{page}: there is no {place}"
        linked = str(path.resolve().relative_to(ROOT)) if place else page
        assert not heading or heading in anchors(linked), f"{page}: there is no heading {target}"


@pytest.mark.parametrize("page", GUIDES)
def test_a_name_that_is_a_link_is_defined_there(page: str) -> None:
    """[`Dataset.save`](../data/dataset.py) leads to the file that defines it."""
    for name, target in re.findall(r"\[`([\w.]+)`\]\(([^)#\s]+\.py)\)", text_of(page)):
        body = ast.parse(((ROOT / page).parent / target).resolve().read_text(encoding="utf-8")).body
        for part in name.split("."):
            statement = defined_in(body).get(part)
            assert isinstance(statement, ast.FunctionDef | ast.ClassDef), f"{page}: {target} does not define {name}"
            body = statement.body


def test_the_readme_leads_to_every_page_and_stays_short() -> None:
    linked = {target.partition("#")[0] for target in links("README.md")}
    assert set(DOCS) | {"RESULTS.md", "CONTRIBUTING.md", "LICENSE"} <= linked
    assert len(text_of("README.md").splitlines()) <= MOST_LINES_OF_THE_README


def test_the_readme_has_the_stored_figures_of_the_demo() -> None:
    """SLIT is not among the demo's models; the other rows are."""
    stored = json.loads((ROOT / "tests" / "references" / "demo.json").read_text(encoding="utf-8"))["metrics"]
    rows = dict(re.findall(r"^\| ([\w ,-]+?) \| \**(\.\d+ / \.\d+)\** \|", text_of("README.md"), re.MULTILINE))
    names = {"popularity": "popularity", "item-KNN": "item_knn", "SASRec, not tuned": "sasrec", "sidrec, SFT": "sft"}
    assert names.keys() <= rows.keys()
    for row, model in names.items():
        figures = stored[model]["test"]["masked"]
        assert rows[row] == " / ".join(f"{figures[name]:.4f}".lstrip("0") for name in ("recall@10", "ndcg@10"))


# ---- the examples in Python


def examples() -> Iterator[tuple[str, int, str]]:
    for page in GUIDES:
        for number, block in enumerate(blocks(page, "python")):
            yield page, number, block


def example(page: str, has: str) -> str:
    """The page's Python block that holds a word."""
    (block,) = [block for block in blocks(page, "python") if has in block]
    return block


def run_example(block: str, **names: Any) -> dict[str, Any]:
    """The names that a block of a page leaves behind."""
    module = {"__name__": "example_of_a_page", **names}
    sys.modules["example_of_a_page"] = type(sys)("example_of_a_page")  # dataclasses look their module up
    try:
        exec(compile(block, "example", "exec", dont_inherit=True), module)
    finally:
        del sys.modules["example_of_a_page"]
    return module


@pytest.fixture
def in_a_finished_run(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory whose outputs/demo is a small finished run."""
    shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "outputs" / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_example_that_recommends_by_indices_runs(in_a_finished_run: Path) -> None:
    lists = run_example(example("docs/decoding.md", "Recommender"))["lists"]
    assert lists.items.shape[1] == 10
    assert (lists.items >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "histories"), [("README.md", 1), ("docs/serving.md", 2)])
def test_the_examples_that_recommend_by_ids_run(page: str, histories: int, in_a_finished_run: Path) -> None:
    block = example(page, "from sidrec import Recommender").replace('"b0056", "b0361"', '"i3", "i5"')
    table = run_example(block.replace("u0000", "u"))["table"]
    assert len(table) == 5 * histories
    assert table["reason"].null_count() == 5


@pytest.mark.slow
def test_the_example_that_draws_lists_runs(in_a_finished_run: Path) -> None:
    names = run_example(example("docs/evaluation.md", "draw_list").replace("[56, 361]", "[56, 36]"))
    assert len(set(names["items"][0].tolist()) - {56, 36}) == 10
    assert ((names["propensities"] > 0) & (names["propensities"] <= 1)).all()


def test_the_example_of_a_store_keeps_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_example(example("docs/store.md", "Store.open"))
    assert names["added"].accepted == 1
    assert names["store"].history("ann") == ["tea-3"]
    names["store"].close()


@pytest.mark.slow
def test_the_example_of_a_stage_is_one(in_a_finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = run_example(example("CONTRIBUTING.md", "CountConfig"))["main"]
    main([])
    file = in_a_finished_run / "outputs" / "demo" / "count" / "count.json"
    first = file.stat().st_mtime_ns
    main([])  # finished
    assert file.stat().st_mtime_ns == first
    assert json.loads(file.read_text(encoding="utf-8")) == {"items": 60}
    assert "count.json" in capsys.readouterr().out


def test_the_example_of_a_quantizer_learns_and_codes() -> None:
    from sidrec.tokenizer.quantizers.kind import Kind

    kind = run_example(example("CONTRIBUTING.md", "class Sampled"))["Sampled"](shrink=0.25)
    assert isinstance(kind, Kind)
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    quantizer = kind.fit(vectors, [6, 4], seed=3)
    codes = kind.encode(quantizer, vectors, seed=3)
    distances = ((vectors[:, None] - quantizer.codebooks.books[0][None]) ** 2).sum(2)
    assert codes.shape == (40, 2)
    np.testing.assert_array_equal(codes[:, 0], distances.argmin(1))


def test_the_example_of_a_baseline_ranks() -> None:
    again = run_example(example("CONTRIBUTING.md", "class Again"))["AGAIN"].fit([], 5)
    np.testing.assert_array_equal(np.argsort(-again.scores([np.array([4, 1])])[0])[:2], [1, 4])


def test_the_example_of_a_reward_is_taken_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sidrec.rl.rewards import import_reward

    (tmp_path / "rewards_of_a_page.py").write_text(example("CONTRIBUTING.md", "same_first_code"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = import_reward("rewards_of_a_page.same_first_code")
    assert reward(codes=[(1, 2), (3, 4)], target_codes=[(1, 5), (4, 4)], items=[0, 1]) == [1.0, 0.0]


def test_every_example_in_python_is_run_by_a_test() -> None:
    run = ("Recommender.load", "Store.open", "CountConfig", "class Sampled", "class Again", "same_first_code")
    for page, number, block in examples():
        assert any(word in block for word in run), f"{page}: nothing runs its block {number} of Python"


@pytest.mark.slow
def test_the_interaction_that_the_architecture_follows_is_the_demos(tmp_path: Path) -> None:
    from sidrec.data import prepare
    from sidrec.data.dataset import Dataset
    from sidrec.tokenizer import embed, quantize
    from sidrec.tokenizer.semantic_ids import SemanticIds

    run_dir, text = tmp_path / "demo", text_of("docs/architecture.md")
    prepare.main(["--dataset", "demo", "--run_dir", str(run_dir)])
    for module in (embed, quantize):
        module.main(["--config", "configs/tokenizer/demo.yaml", "--run_dir", str(run_dir)])
    dataset, sids = Dataset.load(run_dir), SemanticIds.load(run_dir)
    ids, titles = dataset.items["item_id"].to_list(), dataset.titles
    user, later, item_id, earlier, before = re.search(
        r"User `(\w+)` of the demo takes \*(.+?)\* \(item id `(\w+)`\) after \*(.+?)\* \(`(\w+)`\)", text
    ).groups()  # type: ignore[union-attr]
    item, item_before = ids.index(item_id), ids.index(before)
    assert (titles[item], titles[item_before]) == (later, earlier)
    history = dataset.interactions.filter(dataset.interactions["user_id"] == user)
    place = history["item_index"].to_list().index(item)
    assert history["item_index"][place - 1] == item_before
    assert history["split"][place] == "train"
    assert f"item {item} → codes {sids.codes[item][0]} and {sids.codes[item][1]} → `{sids.text(item)}`" in text
    assert f"`<history>` … `{sids.text(item_before)}{sids.text(item)}` …" in text
    assert f"The item *{earlier}* before it is `{sids.text(item_before)}`" in text
