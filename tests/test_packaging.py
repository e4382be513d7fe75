"""What an installed sidrec is: one package with its configs and nothing else, which runs away from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "pipeline",
    "data",
    "tokenizer",
    "decoding",
    "baselines",
    "evaluation",
    "sft",
    "rl",
    "codec",
    "serving",
    "configs",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, so that nothing is written beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={folder}/source/"], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(folder / "source")], check=True)
    (file,) = folder.glob("sidrec-*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """The wheel unpacked, as pip would."""
    folder = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder)
    return folder


def sidrec(site: Path, cwd: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "sidrec", *arguments]
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_wheel_holds_the_package_and_its_configs_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    folders = {name.split("/")[0] for name in names}
    assert folders == {"sidrec", next(folder for folder in folders if folder.endswith(".dist-info"))}
    assert {name.split("/")[1] for name in names if name.startswith("sidrec/") and name.count("/") > 1} == set(ROOMS)
    packaged = {name.removeprefix("sidrec/configs/") for name in names if name.endswith(".yaml")}
    assert packaged == {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    page = {name.removeprefix("sidrec/serving/page/") for name in names if name.startswith("sidrec/serving/page/")}
    assert page == {path.name for path in (ROOT / "serving" / "page").iterdir()}
    others = [name for name in names if "/serving/page/" not in name and ".dist-info/" not in name]
    assert not [name for name in others if not name.endswith((".py", ".yaml"))]


def test_the_installed_package_runs_away_from_the_repository(site: Path, tmp_path: Path) -> None:
    assert "prepare" in sidrec(site, tmp_path, "--help")
    assert "machine: " in sidrec(site, tmp_path, "env")
    assert sidrec(site, tmp_path, "keys", "--store", "store.db", "--create", "read").startswith(
        "sidrec_"
    )  # by its migrations
    printed = sidrec(site, tmp_path, "prepare", "--config", "configs/data/demo.yaml")
    assert "1,200 users, 480 items" in printed
    assert (tmp_path / "outputs" / "demo" / "data" / "items.parquet").is_file()
