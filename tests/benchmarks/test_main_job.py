"""The benchmark's own work; the quickstart that it runs is tested in test_quickstart.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import harness, main_job
from benchmarks.harness import QUICKSTART_LINE, describe_machine, quickstart_command
from benchmarks.main_job import MainJobConfig, key_figures, run_timed
from sidrec import quickstart
from sidrec.pipeline.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_the_quickstart_begins_each_stage_with_such_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(quickstart, "run", lambda *command: None)
    monkeypatch.setattr(quickstart, "first_user", lambda run_dir: "u1")
    monkeypatch.setattr(quickstart, "next_command", lambda evaluation: None)
    quickstart.main(["demo", "--run_dir", str(tmp_path)])
    *lines, last = capsys.readouterr().out.splitlines()
    assert [QUICKSTART_LINE.match(line)[1] for line in lines] == [*quickstart.STAGES, "recommend"]
    assert last.endswith(str(tmp_path / "evaluation" / "report.html"))
    assert not QUICKSTART_LINE.match(last)


def test_a_stage_lasts_until_the_next_begins(capfd: pytest.CaptureFixture[str]) -> None:
    ticks = iter([0.0, 1.0, 3.5, 10.0])
    script = "echo hello; echo '── 1/6 data: read'; echo '1/6 not: a stage'; echo '── 2/6 tokenizer: vectors'; exit 7"
    code, seconds, stages = run_timed(["bash", "-c", script], clock=lambda: next(ticks))
    assert (code, seconds, stages) == (7, 10.0, {"data": 2.5, "tokenizer": 6.5})
    assert capfd.readouterr().out.splitlines()[0] == "hello"


def test_a_command_without_stages_has_no_stage_seconds() -> None:
    code, _, stages = run_timed(["bash", "-c", "exit 2"])
    assert (code, stages) == (2, {})


def test_an_interrupted_benchmark_leaves_nothing_running(tmp_path: Path) -> None:
    """The grandchild, as a stage would be, is gone after SIGTERM to the benchmark."""
    program = (
        "from sidrec.pipeline.command import run_as_command; from benchmarks.main_job import run_timed; "
        f"run_as_command(lambda: run_timed(['bash', '-c', 'sleep 60 & echo $! > {tmp_path}/pid; wait']))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    sleeper = Path("/proc") / pid_file.read_text().strip() / "stat"
    while sleeper.exists() and ") Z " not in sleeper.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sleeper.exists() or ") Z " in sleeper.read_text()


def write_evaluation(folder: Path, oracle: float | None) -> None:
    """An evaluation/ with another figure in every place."""
    folder.mkdir()
    metrics = {
        model: {
            split: {
                seen: {"recall@10": round(0.1 * m + 0.01 * s + 0.001 * u, 3), "recall@1": 9.0}
                for u, seen in enumerate(("masked", "unmasked"))
            }
            for s, split in enumerate(("test", "valid"))
        }
        for m, model in enumerate(("sft", "rl", "popularity", "markov"), start=1)
    }
    checks = {"lists": 100, "invalid": 1, "repeats": 20, "short": 300, "seen": 4000}
    comparison = {
        "best_baseline": "markov",
        "oracle": oracle and {"test": {"expected": {"1": 9.0, "10": oracle}, "realised": {"10": 9.0}}},
        "list_checks": {"sft": checks, "rl": checks},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "comparison.json").write_text(json.dumps(comparison))


@pytest.mark.parametrize("oracle", [0.5, None])
def test_key_figures_come_from_the_right_places(tmp_path: Path, oracle: float | None) -> None:
    write_evaluation(tmp_path / "evaluation", oracle)
    assert key_figures(tmp_path / "evaluation") == {
        "recall10_sft": 0.1,
        "recall10_rl": 0.2,
        "recall10_oracle": oracle,
        "recall10_best_baseline": 0.4,
        "best_baseline": "markov",
        "recall10_valid_sft": 0.11,
        "recall10_valid_rl": 0.21,
        "invalid": 2,
        "duplicates": 40,
        "short_lists": 600,
    }


def run_main(monkeypatch: pytest.MonkeyPatch, quickstart: str, *flags: str) -> None:
    """`main` with `quickstart`, a shell script, in the quickstart's place, and nothing to install."""
    folder = Path.cwd()
    (folder / "install.sh").write_text("")
    (folder / "run_quickstart.sh").write_text(quickstart)
    for module in (main_job, harness):
        monkeypatch.setattr(module, "ROOT", folder)
    main_job.main(list(flags))


def test_the_last_line_is_one_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_evaluation(tmp_path / "evaluation", 0.5)
    run_main(monkeypatch, 'echo "── 1/6 data: x"; mkdir -p "$3"; cp -r evaluation "$3"\n')  # $2 $3: --run_dir DIR
    lines = capfd.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert set(figures) == {
        *(
            "seconds",
            "recall10_sft",
            "recall10_rl",
            "recall10_oracle",
            "recall10_best_baseline",
            "invalid",
            "duplicates",
        ),
        *("recall10_valid_sft", "recall10_valid_rl", "best_baseline", "short_lists", "stage_seconds"),
    }
    assert lines[0] == describe_machine()
    run_dir = Path(lines[1].split("--run_dir ")[1])
    assert not run_dir.exists()
    assert list(figures["stage_seconds"]) == ["data"]
    assert figures["seconds"] >= figures["stage_seconds"]["data"] >= 0


def test_the_exit_code_of_the_quickstart_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run_main(monkeypatch, "echo failing; exit 3\n", "--run_dir", "new")
    assert end.value.code == 3
    assert not capfd.readouterr().out.splitlines()[-1].startswith("{")


def test_a_run_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="not empty"):
        MainJobConfig(run_dir=tmp_path)
    MainJobConfig(run_dir=tmp_path / "data")
    MainJobConfig(run_dir=tmp_path / "new")


def test_the_raw_folder_is_passed_on_as_a_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = quickstart_command("ml-1m", tmp_path / "run", "--raw_dir", "raw")
    assert command[2:] == ["ml-1m", "--raw_dir", "raw", "--run_dir", str(tmp_path / "run")]
    assert quickstart_command("demo", tmp_path)[2:] == ["demo", "--run_dir", str(tmp_path)]
    ran: list[list[str]] = []
    monkeypatch.setattr(main_job, "run_timed", lambda command: ran.append(command) or (3, 0.0, {}))
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "", "--dataset", "ml-100k", "--raw_dir", "raw", "--run_dir", "new")
    assert ran[0][2:] == ["ml-100k", "--raw_dir", str(tmp_path / "raw"), "--run_dir", str(tmp_path / "new")]


def test_the_machine_is_described_in_one_line() -> None:
    line = describe_machine()
    assert "\n" not in line
    assert f"{len(os.sched_getaffinity(0))} cores" in line
    assert "torch 2." in line
