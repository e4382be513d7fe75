"""The house's own rules, read from its source: the order of the rooms, sizes, names, and what is imported."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "pipeline", "data", "tokenizer", "decoding", "baselines", "evaluation", "sft", "rl", "codec", "serving",
)  # fmt: skip
MOST_LINES, MOST_FUNCTION_LINES, MOST_TOKENIZER_FILES = 600, 60, 12
SAYS_NOTHING = {"found", "own", "kept", "taken"}
NO_NOUN = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}
ORDINARY_WORDS = {"random", "given", "product", "lora"}  # quantizers' names that mean something else in other rooms
# quantizers' names that are also a setting's value in the tokenizer
ALSO_VALUES = {("tokenizer/autoencoders/settings.py", "random")}  # codebook_init: what codebooks start as
# modules that no installed distribution names: an optional one that may be absent, by the name that pyproject declares
ABSENT = {"faiss": "faiss-cpu", "k_means_constrained": "k-means-constrained", "sentence_transformers": "sentence-transformers"}  # fmt: skip
OWN_ENVIRONMENT = {"benchmarks/rectools_yardstick.py"}  # runs in another environment, as its head says


def files(*folders: str) -> list[Path]:
    """Every Python file below these folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=name_of(path))


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in the file, those inside functions and under `if TYPE_CHECKING` included."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively; write `from sidrec.…`"
            assert node.module is not None
            if node.module == "sidrec":  # from sidrec import sft
                yield from ((node.lineno, f"sidrec.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def listed(faults: Iterable[str]) -> str:
    return "\n" + "\n".join(faults)


def test_a_room_imports_only_from_rooms_before_it() -> None:
    faults = []
    for place, room in enumerate(ROOMS):
        for path in files(room):
            for line, module in imported_modules(path):
                top, _, rest = module.partition(".")
                other = rest.partition(".")[0]
                if top == "benchmarks" or (top == "sidrec" and other in ROOMS[place + 1 :]):
                    faults.append(f"{name_of(path)}:{line} imports {module}")
    assert not faults, listed(faults)


def test_the_rooms_are_those_of_the_package() -> None:
    """A new room has a place in the order."""
    links = {path.name for path in (ROOT / "src" / "sidrec").iterdir() if path.is_symlink()}
    assert links - {"configs"} <= set(ROOMS)
    assert {path.parts[-2] for path in ROOT.glob("*/__init__.py")} <= {*ROOMS, "benchmarks", "configs"}


def test_no_benchmark_imports_another() -> None:
    """What several of them need stands in modules that are no benchmark: they have no `main`."""
    benchmarks = {
        path.stem
        for path in files("benchmarks")
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree_of(path).body)
    }
    assert len(benchmarks) > 10
    faults = [
        f"{name_of(path)}:{line} imports {module}"
        for path in files("benchmarks")
        for line, module in imported_modules(path)
        if module.startswith("benchmarks.") and module.split(".")[1] in benchmarks
    ]
    assert not faults, listed(faults)


def test_the_tokenizers_folder_is_short() -> None:
    modules = [path.name for path in (ROOT / "tokenizer").glob("*.py")]
    assert len(modules) <= MOST_TOKENIZER_FILES, modules


def test_no_file_is_longer_than_600_lines() -> None:
    lengths = {
        name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files(*ROOMS, "benchmarks")
    }
    faults = [f"{name}: {length} lines" for name, length in lengths.items() if length > MOST_LINES]
    assert not faults, listed(faults)


def test_no_function_is_longer_than_60_lines() -> None:
    faults = []
    for path in files(*ROOMS, "benchmarks"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > MOST_FUNCTION_LINES:
                    faults.append(f"{name_of(path)}:{node.lineno} {node.name}: {length} lines")
    assert not faults, listed(faults)


def test_a_local_name_says_what_it_holds() -> None:
    faults = []
    for path in files(*ROOMS, "benchmarks", "tests"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in SAYS_NOTHING:
                faults.append(f"{name_of(path)}:{node.lineno} {node.id}")
            elif isinstance(node, ast.arg) and node.arg in SAYS_NOTHING:
                faults.append(f"{name_of(path)}:{node.lineno} {node.arg}")
    assert not faults, listed(sorted(set(faults)))


def test_a_path_is_never_read_as_a_pattern() -> None:
    """Polars reads `run[1]/log.csv` as a pattern, and then another file than the one that was named and hashed."""
    readers = {"read_parquet", "scan_parquet", "read_csv", "scan_csv", "scan_ndjson"}
    patterns = []
    for path in files(*ROOMS, "benchmarks"):
        calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        literal = {id(call) for call in calls for keyword in call.keywords if keyword.arg == "glob"}
        patterns += [
            f"{name_of(path)}:{call.lineno}"
            for call in calls
            if any(isinstance(node, ast.Attribute) and node.attr in readers for node in ast.walk(call.func))
            and not any(isinstance(node, ast.Call) for node in ast.walk(call.func))
            and id(call) not in literal
        ]
    assert not patterns, listed(patterns)


def test_a_module_has_a_noun() -> None:
    modules = [path for path in files(*ROOMS, "benchmarks", "tests") if NO_NOUN & {path.stem, path.parent.name}]
    assert not modules, listed(map(name_of, modules))


def quantizers() -> dict[str, str]:
    """The rows of `QUANTIZERS` in tokenizer/quantizers/__init__.py: the name, and the source of what stands behind it."""
    path = ROOT / "tokenizer" / "quantizers" / "__init__.py"
    for node in tree_of(path).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if [target.id for target in targets if isinstance(target, ast.Name)] == ["QUANTIZERS"]:
            table = node.value  # type: ignore[union-attr]
            assert isinstance(table, ast.Dict), "QUANTIZERS is a plain dictionary"
            rows = zip(table.keys, table.values, strict=True)
            return {key.value: ast.unparse(value) for key, value in rows if isinstance(key, ast.Constant)}  # type: ignore[misc]
    pytest.fail(f"{name_of(path)} has no dictionary QUANTIZERS")


def test_a_quantizers_name_stands_in_one_row() -> None:
    """In the library, outside the quantizer's own file: the row of QUANTIZERS, and nothing else."""
    names = quantizers()
    assert len(names) >= 11
    folder, faults = ROOT / "tokenizer" / "quantizers", []
    for path in files(*ROOMS):
        in_tokenizer = path.is_relative_to(ROOT / "tokenizer")
        watched = set(names) if in_tokenizer else set(names) - ORDINARY_WORDS
        for node in ast.walk(tree_of(path)):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in watched):
                continue
            is_row = path == folder / "__init__.py"
            is_its_file = (
                path.parent == folder and path.stem.replace("_", "") in names[node.value].replace("_", "").lower()
            )
            if not (is_row or is_its_file or (name_of(path), node.value) in ALSO_VALUES):
                faults.append(f"{name_of(path)}:{node.lineno} {node.value!r}")
    rows = [
        node.value
        for node in ast.walk(tree_of(folder / "__init__.py"))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert sorted(rows) == sorted(names), "a name stands more than once in tokenizer/quantizers/__init__.py"
    assert not faults, listed(faults)


def declared(*extras: str) -> set[str]:
    """Normalised names of the distributions that pyproject declares, for the package itself and for these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + [
        requirement for extra in extras for requirement in project["optional-dependencies"][extra]
    ]
    return {normalised(requirement) for requirement in requirements}


def normalised(requirement: str) -> str:
    """The name in a requirement such as "faiss-cpu>=1.11,<2", in small letters with hyphens."""
    name = requirement
    for sign in "[]<>=!~; ":
        name = name.split(sign)[0]
    return name.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("src", *ROOMS), ("text", "serve", "export")),
        (("benchmarks",), ("text", "bench", "serve", "export")),
        (("tests",), ("text", "bench", "serve", "postgres", "export", "dev")),
    ],
    ids=["library", "benchmarks", "tests"],
)
def test_what_is_imported_is_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    allowed, providers = declared(*extras), packages_distributions()
    inside = {"sidrec", "benchmarks", "test_house", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    faults = set()
    for path in files(*folders):
        if name_of(path) in OWN_ENVIRONMENT:
            continue
        for line, module in imported_modules(path):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in inside:
                continue
            distributions = {normalised(name) for name in providers.get(top, [ABSENT.get(top, top)])}
            if not distributions & allowed:
                faults.add(f"{top}, a module of {'/'.join(sorted(distributions))}: {name_of(path)}:{line}")
    assert not faults, listed(sorted(faults))
