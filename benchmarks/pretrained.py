"""What a real pretrained language model is worth in this project, on a part of an epoch: SmolLM2-135M beside its own shape without what it
learnt, and beside a small model from scratch.

bash install.sh smollm
sidrec prepare --config configs/data/ml-100k.yaml
bash run_tokenizer.sh --config configs/tokenizer/ml-100k.yaml
python -m benchmarks.pretrained --run_dir outputs/ml-100k --work_dir outputs/pretrained --json

Every row but the last trains on the same batches for the same steps. Cases are valid ones, drawn once; seen items are left out.

* `ours` has the settings of configs/sft/smollm2_135m.yaml: adapters, and texts of the model's own. Its neighbours change one thing each:
  rows as they were before `sft/quiet_rows.py`, rows at the mean of the words' (what `resize_token_embeddings` does), no share of the loss
  over the vocabulary, no text of its own. `all weights` and `random weights`, which have learnt nothing before, train without adapters.
* `with words` learns texts and a person's questions beside the next item, and is asked: which item has this text, as it was learnt, edited
  without changing what it says, and with another item's title in the place of its own (then either of the two may be meant); and which
  item follows on a question. Recall@10 of all items.
* `one position an item` is the same model's decoder in an RQ-Transformer (`sft/one_position.py`), which writes no words.
* `scratch` is an RQ-Transformer with the project's defaults, and its own processor seconds.

Perplexity is of plain English passages (`sft/english.py`). `generate` counts greedy continuations of valid histories by transformers alone,
without a constraint: first codes that are codes of the first level, and whole semantic IDs that are an item's. A finished row is not run
again. The last line is one JSON object.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.finished_rows import FinishedRows, Row, markdown
from benchmarks.harness import SFT, announce, check_at_least, cost_of_stage, plain_console, print_figures
from benchmarks.rl_runs import STAGES
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.metrics import ranks_in_lists, recall_at
from sidrec.decoding.answers import answers
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.files import read_json
from sidrec.sft.english import ENGLISH_FILE
from sidrec.sft.examples import token_ids
from sidrec.sft.questions import Questions, item_traits
from sidrec.sft.smollm import NAME, smollm_folder
from sidrec.sft.validation import sample_cases
from sidrec.tokenizer.semantic_ids import SemanticIds

NOT_QUIETED = "from sidrec.sft import fine_tuning, train; fine_tuning.quiet_rows = lambda *_: None; train.main()"
ALL_WEIGHTS = ["--model_name_or_path", NAME]
PRETRAINED = [*ALL_WEIGHTS, "--train_weights", "lora", "--own_text", "0.3"]
ROWS: dict[str, list[str]] = {
    "ours": [*SFT, *PRETRAINED],
    "rows not quieted": ["-c", NOT_QUIETED, *PRETRAINED],
    "mean rows": [*SFT, *PRETRAINED, "--embedding_init", "mean"],
    "no vocabulary loss": [*SFT, *PRETRAINED, "--vocabulary_loss_weight", "0"],
    "no text of its own": [*SFT, *ALL_WEIGHTS, "--train_weights", "lora"],
    "all weights": [*SFT, *ALL_WEIGHTS],
    "random weights": [*SFT, "--model_name_or_path", "RANDOM"],
    "one position an item": [*SFT, *ALL_WEIGHTS, "--layout", "one_position"],
    "with words": [*SFT, *PRETRAINED, "--text_to_item", "0.5", "--question_to_item", "0.02", "--next_item", "0.5"],
    "scratch": SFT,
}
HEADER = "row|NLL|R@10|first loss / uniform|perplexity before|after|first code|whole SID|CPU s"


@dataclass
class PretrainedConfig:
    """Fine-tune SmolLM2-135M in several ways, each for the same steps, and compare them on valid cases."""

    run_dir: Path = field(metadata={"help": "Run directory with finished data, embeddings and sid stages."})
    work_dir: Path = field(metadata={"help": "Where runs and finished rows lie."})
    rows: list[str] = field(
        default_factory=lambda: list(ROWS), metadata={"help": f"Any of {', '.join(map(repr, ROWS))}."}
    )
    steps: int = field(default=80, metadata={"help": "Training steps of each row but `scratch`, of about 100 answers."})
    cases: int = field(default=200, metadata={"help": "Valid cases, and prompts that `generate` continues."})
    threads: int = field(default=1, metadata={"help": "Threads of each training."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object as the last line."})

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, cases=self.cases, threads=self.threads)


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(PretrainedConfig, arguments), plain_console()
    announce(console, "pretrained", arguments)
    torch.set_num_threads(config.threads)
    dataset, sids = Dataset.load(config.run_dir), SemanticIds.load(config.run_dir)
    cases = sample_cases(dataset.cases("valid"), config.cases, seed=0)
    finished = FinishedRows(config.work_dir / "rows.json")
    rows: dict[str, Row] = {}
    for name in config.rows:
        made_from = {"command": ROWS[name], "steps": config.steps, "cases": config.cases, "sids": sids.digest}
        row = finished.find(name, made_from)
        if row is None:
            run_dir = begin_run(config.run_dir, config.work_dir / "runs" / name.replace(" ", "_"))
            seconds = train(name, run_dir, config)
            row = finished.keep(name, made_from, measure(name, run_dir, dataset, cases) | {"cpu_seconds": seconds})
        rows[name] = row
        console.print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items() if key != "made_from"))
    console.print("\n" + markdown(HEADER.split("|"), [in_words(name, row) for name, row in rows.items()]))
    if config.json:
        print_figures(figures(rows))


def begin_run(base: Path, run_dir: Path) -> Path:
    """A new run directory with links to the base's data, embeddings and semantic IDs."""
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    for stage in STAGES[:-1]:
        (run_dir / stage).symlink_to((base / stage).resolve(), target_is_directory=True)
    return run_dir


def train(name: str, run_dir: Path, config: PretrainedConfig) -> float:
    """Train a row's model; its processor seconds, with those of a last validation on few cases."""
    command = [str(random_weights(config.work_dir)) if word == "RANDOM" else word for word in ROWS[name]]
    steps = ["--max_steps", str(config.steps), "--batch_items", "128", "--max_items", "50", "--eval_strategy", "no"]
    flags = [] if name == "scratch" else [*steps, "--valid_users", "10", "--logging_steps", "1"]
    return cost_of_stage([*command, *flags, "--disable_tqdm", "true"], run_dir, config.threads).cpu_seconds


def random_weights(work_dir: Path) -> Path:
    """A folder of SmolLM2's shape and tokenizer, with weights that have learnt nothing."""
    folder = work_dir / "random_weights"
    if not (folder / "config.json").exists():
        pretrained = smollm_folder()
        torch.manual_seed(0)
        AutoTokenizer.from_pretrained(pretrained).save_pretrained(folder)
        shape = AutoModelForCausalLM.from_pretrained(pretrained).config
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    return folder


def measure(name: str, run_dir: Path, dataset: Dataset, cases: EvalCases) -> Row:
    """What a trained row's model is worth."""
    recommender = Recommender.load(run_dir, "sft")
    ranks = ranks_in_lists(recommender.recommend(cases.histories, 10, exclude_seen=True).items, cases.targets)
    row: Row = {
        "nll": round(-float(recommender.log_probs_of(cases.histories, cases.targets).mean()), 3),
        "recall10": float(recall_at(ranks, 10).mean()),
    }
    if name == "scratch":
        return row
    row |= first_loss(run_dir, recommender.renderer)
    if name == "one position an item":
        return row
    return (
        row
        | read_json(run_dir / "sft" / ENGLISH_FILE)
        | generated(run_dir / "sft", cases.histories)
        | (asked_in_words(recommender, run_dir, dataset, cases) if name == "with words" else {})
    )


def first_loss(run_dir: Path, renderer: Renderer) -> Row:
    """The first step's loss a code over that of a uniform choice among the codes that exist, in the mean over items."""
    log = (run_dir / "sft" / "log.txt").read_text(encoding="utf-8")
    first = json.loads(next(re.finditer(r"\{\"loss\".*\}", log)).group())["loss"]
    codes = renderer.codes.numpy()
    uniform = []
    for level in range(codes.shape[1]):
        _, parent = np.unique(codes[:, :level], axis=0, return_inverse=True)
        children = np.unique(np.column_stack([parent, codes[:, level]]), axis=0)[:, 0]
        uniform.append(np.log(np.bincount(children)[parent]).mean())
    return {"first_loss_ratio": round(first / float(np.mean(uniform)), 3)}


def generated(folder: Path, histories: list[np.ndarray]) -> Row:
    """Shares of greedy continuations, by transformers alone, that begin with a first code, and that are an item's whole SID."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sids = SemanticIds.read(folder / "semantic_ids")
    renderer, items = Renderer.load(folder, sids), {sids.text(item): item for item in range(sids.n_items)}
    first_codes = {f"{name.split('>')[0]}>" for name in items}
    texts = []
    for first in range(0, len(histories), 25):
        input_ids, attention_mask = renderer.batch(histories[first : first + 25])
        written = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=sids.n_levels,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts += tokenizer.batch_decode(written[:, input_ids.shape[1] :], skip_special_tokens=True)
    return {
        "generated_first_code": float(np.mean([f"{text.split('>')[0]}>" in first_codes for text in texts])),
        "generated_whole_sid": float(np.mean([text in items for text in texts])),
    }


def asked_in_words(recommender: Recommender, run_dir: Path, dataset: Dataset, cases: EvalCases) -> Row:
    """Recall@10 of items asked for by their text, by an edited text, by a text with another title, and of next items by a question."""
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "sft")
    control, titles, texts = recommender.renderer.control, dataset.titles, dataset.items["text"].to_list()
    items = np.random.default_rng(0).choice(dataset.n_items, min(dataset.n_items, len(cases)), replace=False)
    others = np.roll(items, 1)

    def recall(lines: list[str], wanted: np.ndarray) -> float:
        prompts = [[control("<text>"), *ids, control("<item>")] for ids in token_ids(lines, tokenizer, 64)]
        return float((answers(recommender, prompts, 10).items == wanted[:, None]).any(1).mean())

    swapped = [texts[item].replace(titles[item], titles[other]) for item, other in zip(items, others, strict=True)]
    questions = Questions(titles, item_traits(dataset.items), tokenizer)
    prompts = [
        questions.prompt(questions.text(int(history[-1]), int(target)))
        for history, target in zip(cases.histories, cases.targets, strict=True)
    ]
    following = answers(recommender, prompts, 10).items == np.asarray(cases.targets)[:, None]
    return {
        "text_recall10": recall([texts[item] for item in items], items),
        "edited_text_recall10": recall([edited(texts[item]) for item in items], items),
        "swapped_title_of_the_title_recall10": recall(swapped, others),
        "swapped_title_of_the_rest_recall10": recall(swapped, items),
        "question_recall10": float(following.any(1).mean()),
    }


def edited(text: str) -> str:
    """The same in other words: no year, the article in front, small letters, a film for a movie."""
    plain = re.sub(r"\s*\(\d{4}\)", "", text)
    plain = re.sub(r"^(.*?), (The|A|An)\b", r"\2 \1", plain)
    return plain.replace("genres:", "kind of film:").lower()


def figures(rows: dict[str, Row]) -> Row:
    """The last line's keys, of the rows that there are."""
    names = {
        "ours": {
            "nll": "nll",
            "recall10": "recall10",
            "first_loss_ratio": "first_loss_ratio",
            "perplexity_before": "perplexity_before",
            "perplexity_after": "perplexity_after",
            "generated_first_code": "generated_first_code",
            "generated_whole_sid": "generated_whole_sid",
        },
        "rows not quieted": {"recall10": "recall10_todays_rows"},
        "mean rows": {"recall10": "recall10_mean_rows"},
        "no vocabulary loss": {"recall10": "recall10_no_vocabulary_loss"},
        "random weights": {"recall10": "recall10_random_weights", "nll": "nll_random_weights"},
        "one position an item": {"recall10": "recall10_one_position", "nll": "nll_one_position"},
        "scratch": {
            "recall10": "recall10_scratch_equal_time",
            "nll": "nll_scratch",
            "cpu_seconds": "scratch_cpu_seconds",
        },
    }
    chosen = {key: rows[row][name] for row, keys in names.items() if row in rows for name, key in keys.items()}
    words = {key: value for key, value in rows.get("with words", {}).items() if "recall10" in key}
    return chosen | {f"with_words_{key}": value for key, value in words.items()}


def in_words(name: str, row: Row) -> list[str]:
    keys = "nll recall10 first_loss_ratio perplexity_before perplexity_after generated_first_code generated_whole_sid"
    cells = ["—" if row.get(key) is None else f"{row[key]:.3f}" for key in keys.split()]
    return [name, *cells, f"{row['cpu_seconds']:.0f}"]


if __name__ == "__main__":
    run_as_command(main)
