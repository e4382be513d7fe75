"""evaluation/report.html: what is on the page of a run, that it needs nothing from elsewhere, and where its figures come from."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from html_pages import PHONE_WIDTH, assert_readable_on_a_phone, in_a_browser, outside
from run_dirs import finished_sft_run, make_run_dir

from sidrec.data.dataset import Dataset
from sidrec.evaluation import evaluate
from sidrec.evaluation.report import figures as report
from sidrec.evaluation.report.figures import describe, examples, recall_curves, rounded
from sidrec.evaluation.report.page import render
from sidrec.evaluation.report.plots import recall_plot
from sidrec.pipeline import provenance as origin
from sidrec.tokenizer.report.plots import coinciding

SECTIONS = (
    "The table",
    "Longer lists",
    "Where the gain is",
    "How much of the catalogue is shown",
    "Are the probabilities true?",
    "Code by code",
    "Ten examples",
    "Where these figures come from",
    "Fine print",
)
GENERATIVE_SECTIONS = ("Are the probabilities true?", "Code by code")
COMMIT = "commit 0123456789abcdef"
WRITTEN = ("report.html", "report.json", "slices.json", "lists.parquet")


def run(folder: Path, *flags: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "code_version", lambda: COMMIT)  # the real one may change between two runs of a test
        evaluate.main(["--run_dir", str(folder), *flags])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(finished_sft_run(tmp_path_factory), folder)
    run(folder, "--models", "sft", "popularity", "item_knn", "markov")
    return folder


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return (run_dir / "evaluation" / "report.html").read_text(encoding="utf-8")


def headings(page: str) -> tuple[str, ...]:
    return tuple(re.findall(r"<h2>(.*?)</h2>", page))


def text(page: str) -> str:
    return re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", page, flags=re.DOTALL)


def cells(page: str) -> list[list[str]]:
    """Rows of all tables."""
    return [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL)]


def test_the_page_has_every_section_valid_plots_and_nothing_from_elsewhere(page: str) -> None:
    assert headings(page) == SECTIONS
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 9
    for plot in plots:
        ElementTree.fromstring(plot)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, flags=re.DOTALL)
    assert len(captions) == len(plots)
    assert all(caption.strip().endswith(".") for caption in captions)
    assert outside(page) == []
    for word in ("nan", "None", "inf<"):
        assert word not in text(page)


def test_the_page_is_readable_on_a_phone(page: str, tmp_path: Path) -> None:
    assert_readable_on_a_phone(page, tmp_path)


def test_what_sticks_out_or_is_cut_off_is_seen(page: str, tmp_path: Path) -> None:
    wide = page.replace("<h2>", '<p style="width: 900px">wide</p><h2>', 1)
    assert in_a_browser(wide, tmp_path)["scroll"] > PHONE_WIDTH
    cut = re.sub(r'viewBox="0 0 [\d.]+ ', 'viewBox="0 0 200 ', page)
    assert len(in_a_browser(cut, tmp_path)["cut"]) > 9


def test_two_runs_give_the_same_bytes(run_dir: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(run_dir, again)
    run(again, "--models", "sft", "popularity", "item_knn", "markov", "--overwrite", "true")
    for name in (*WRITTEN, "manifest.json"):
        assert (again / "evaluation" / name).read_bytes() == (run_dir / "evaluation" / name).read_bytes(), name


def test_the_manifest_knows_the_files_of_the_report(run_dir: Path) -> None:
    outputs = json.loads((run_dir / "evaluation" / "manifest.json").read_text())["outputs"]
    assert set(WRITTEN) <= set(outputs)


def test_the_table_of_the_page_holds_the_figures_of_metrics_json(run_dir: Path, page: str) -> None:
    metrics = json.loads((run_dir / "evaluation" / "metrics.json").read_text())
    comparison = json.loads((run_dir / "evaluation" / "comparison.json").read_text())
    masked = metrics["sft"]["test"]["masked"]
    row = next(row for row in cells(page) if row and row[0] == "sft")
    assert row[1:6] == [f"{masked[f'recall@{k}']:.4f}" for k in (1, 5, 10, 20, 50)]
    assert row[6] == "{:.4f}–{:.4f}".format(*masked["recall@10_interval"])
    assert row[7] == f"{masked['ndcg@10']:.4f}"
    wanted = {"model": "sft", "against": comparison["best_baseline"], "seen": "masked", "metric": "recall@10"}
    test = next(test for test in comparison["paired_tests"] if wanted.items() <= test.items())
    assert row[8] == f"{test['difference']:+.4f}"
    assert row[9] == ("< .001" if test["p_holm"] < 0.001 else f"{test['p_holm']:.3f}").replace("<", "&lt;")
    assert f"in <b>{masked['recall@10']:.1%}</b> of the cases for the best generative model (sft)" in page


def test_figures_agree_with_the_table(run_dir: Path) -> None:
    """Recall@10 from ranks, from lists and from all codes of the lists is one number."""
    folder = run_dir / "evaluation"
    figures, metrics, slices = (json.loads((folder / f"{n}.json").read_text()) for n in ("report", "metrics", "slices"))
    for model in ("sft", "popularity", "item_knn", "markov"):
        for seen in ("masked", "unmasked"):
            measured = metrics[model]["test"][seen]
            curve = figures["recall_curves"][seen][model]
            assert len(curve) == 50
            assert [curve[k - 1] for k in (1, 10, 50)] == pytest.approx(
                [measured[f"recall@{k}"] for k in (1, 10, 50)], abs=1e-6
            )
        recall = metrics[model]["test"]["masked"]["recall@10"]
        levels = figures["levels"]["models"][model]
        assert levels["recall@10"][-1] == pytest.approx(recall, abs=1e-6)
        assert levels["top1"][-1] == pytest.approx(metrics[model]["test"]["masked"]["recall@1"], abs=1e-6)
        for kind in ("history length", "item popularity", "cold items", "long tail"):
            rows = [row for row in slices if row["kind"] == kind and row["model"] == model and row["cases"]]
            assert sum(row["cases"] for row in rows) == figures["data"]["test"] == 60
            assert sum(row["cases"] * row["recall@10"] for row in rows) / 60 == pytest.approx(recall, abs=1e-5)
    calibration = figures["calibration"]
    assert list(calibration) == ["sft"]
    assert calibration["sft"]["top10"]["happened"] == pytest.approx(
        metrics["sft"]["test"]["masked"]["recall@10"], abs=1e-6
    )
    assert 0 < calibration["sft"]["top1"]["predicted"] < calibration["sft"]["top10"]["predicted"] <= 1


def test_probabilities_of_the_lists_are_the_recommenders_own(run_dir: Path) -> None:
    from sidrec.decoding.recommender import Recommender

    lists = pl.read_parquet(run_dir / "evaluation" / "lists.parquet")
    histories = Dataset.load(run_dir).cases("test").histories[:3]
    recommended = Recommender.load(run_dir, "sft").recommend(histories, 10, exclude_seen=True)
    rows = lists.filter(pl.col("model") == "sft").head(3)
    assert rows["items"].to_numpy().tolist() == recommended.items.tolist()
    np.testing.assert_allclose(rows["log_probs"].to_numpy(), recommended.log_probs, rtol=1e-4)


def test_the_page_says_where_its_figures_come_from(run_dir: Path, page: str) -> None:
    data = json.loads((run_dir / "data" / "manifest.json").read_text())["outputs"]
    sft = json.loads((run_dir / "sft" / "manifest.json").read_text())["outputs"]
    rows = {row[0]: row[1] for row in cells(page) if len(row) == 2}
    assert rows["sha256 of data/interactions.parquet"] == data["interactions.parquet"]["sha256"]
    assert rows["sha256 of sft/model.safetensors"] == sft["model.safetensors"]["sha256"]
    assert rows["Code"] == COMMIT
    assert "cores" in rows["Machine"]
    assert "torch" in rows["Software"]
    assert "rings: 60 users, 60 items; " in rows["Data set"]
    assert str(run_dir) not in page


def test_sections_of_models_that_are_missing_are_left_out(tmp_path: Path) -> None:
    make_run_dir(tmp_path)
    run(tmp_path, "--models", "popularity", "markov")
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert headings(page) == tuple(section for section in SECTIONS if section not in GENERATIVE_SECTIONS)
    assert "semantic" not in text(page).lower()
    assert "the best generative model (" not in page


def test_a_generative_model_alone_has_a_page_without_gains(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    run(folder, "--models", "sft", "--overwrite", "true")
    page = (folder / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert headings(page) == SECTIONS
    assert len(re.findall("<svg", page)) == 7
    assert "Gains are over" not in page


def test_examples_are_of_the_test_cases_and_titles_are_shown_as_they_are(run_dir: Path) -> None:
    folder = run_dir / "evaluation"
    dataset, lists = Dataset.load(run_dir), pl.read_parquet(folder / "lists.parquet")
    cases = dataset.cases("test")
    drawn = examples(dataset, lists, ["sft", "markov"], seed=0)
    assert len(drawn) == len({row["case"] for row in drawn}) == 10
    assert drawn == examples(dataset, lists, ["sft", "markov"], seed=0)
    assert drawn != examples(dataset, lists, ["sft", "markov"], seed=1)
    for row in drawn:
        history = cases.histories[row["case"]]
        assert row["history"] == history[-5:].tolist()
        assert row["earlier"] + len(row["history"]) == len(history)
        assert row["target"] == cases.targets[row["case"]]
        assert list(row["lists"]) == ["sft", "markov"]
        assert len(row["lists"]["sft"]) == 5
    figures, metrics, comparison = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("report", "metrics", "comparison")
    )
    slices = pl.DataFrame(json.loads((folder / "slices.json").read_text()))
    titles = [f"{title} <i>& 日本 $x_" for title in dataset.titles]
    page = render(figures, slices, report.item_counts(dataset, lists), titles, metrics, comparison)
    assert "&lt;i&gt;&amp; 日本 $x_" in page
    assert "<i>&" not in page
    hit = next(row for row in figures["examples"] if row["target"] in row["lists"]["sft"])
    assert f". <b>{dataset.titles[hit['target']]} &lt;i&gt;" in page


def test_curves_by_hand_and_counts_of_the_data(run_dir: Path) -> None:
    rows = [
        {"model": "a", "split": split, "masked": masked, "rank": rank if split == "test" and masked else 99}
        for split in ("valid", "test")
        for masked in (True, False)
        for rank in (0, 4, 60)
    ]
    curves = recall_curves(pl.DataFrame(rows))
    assert curves["masked"]["a"] == pytest.approx([1 / 3] * 4 + [2 / 3] * 46)
    assert curves["unmasked"]["a"] == [0.0] * 50
    dataset = Dataset.load(run_dir)
    described = describe(dataset)
    assert (described["users"], described["items"], described["valid"], described["test"]) == (60, 60, 60, 60)
    assert described["train"] == len(dataset.interactions) - 120


def test_curves_that_coincide_are_one_line_that_names_both() -> None:
    curves = {"sft": [0.1, 0.2], "markov": [0.1, 0.3], "rl": [0.1, 0.2], "short": [0.1]}
    assert coinciding(curves) == {"sft": "sft = rl", "markov": "markov", "short": "short"}
    figure = recall_plot(curves, ["sft", "rl"], "title", 1.0)
    lines, legend = figure.axes[0].get_lines(), figure.legends[0].get_texts()
    assert (
        [text.get_text() for text in legend] == [line.get_label() for line in lines] == ["sft = rl", "markov", "short"]
    )


def test_rounding_goes_to_the_bottom_and_leaves_the_rest() -> None:
    value = {"a": [1 / 3, {"b": 2 / 3}], "c": 3, "d": None, "e": "x"}
    assert rounded(value) == {"a": [0.333333, {"b": 0.666667}], "c": 3, "d": None, "e": "x"}


def test_the_commit_is_that_of_the_repository_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(origin, "ROOT", tmp_path.resolve())
    monkeypatch.setattr(origin, "version", lambda name: "1.2")
    assert origin.code_version() == "sidrec 1.2", "no repository"
    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "a_run").write_text("not of the code")
    assert origin.code_version() == f"commit {commit}"
    (tmp_path / "code.py").write_text("2")
    assert origin.code_version() == f"commit {commit} with changes"
    (tmp_path / "package").mkdir()
    monkeypatch.setattr(origin, "ROOT", (tmp_path / "package").resolve())
    assert origin.code_version() == "sidrec 1.2", "installed in somebody else's repository"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(origin, "ROOT", tmp_path.resolve())
    assert origin.code_version() == "sidrec 1.2", "git is not there"
