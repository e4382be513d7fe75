"""RL from a run directory's fine-tuned model to a finished model folder: the model practises on questions of the training histories."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset as TrainingRows
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig

from sidrec.baselines.item_knn import tune_item_knn
from sidrec.data.dataset import Dataset, EvalCases
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, write_json
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.launch import building_together, decided_by_the_first, finished_already
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage, require_finished
from sidrec.rl.aims import ListFigures, bought
from sidrec.rl.dense_rewards import DenseSources, dense_rewards
from sidrec.rl.exact_trainer import ExactGRPOTrainer, HistoryCollator
from sidrec.rl.expectation import DenseReward
from sidrec.rl.list_rewards import Categories
from sidrec.rl.prompts import history_rows, training_prompts
from sidrec.rl.reward_models import ValueSource
from sidrec.rl.rewards import AskedReward, RewardSources, refuse_unknown_rewards, reward_functions
from sidrec.rl.settings import UNDECISIVE, ObjectiveConfig, RlConfig, RlTrainerConfig
from sidrec.rl.trainer import SidGRPOTrainer
from sidrec.rl.training_arguments import grpo_arguments
from sidrec.rl.training_metrics import draw_training
from sidrec.sft.batches import LengthBatches
from sidrec.sft.checkpoints import SealCheckpoints, last_whole_checkpoint
from sidrec.sft.early_stopping import early_stopping
from sidrec.sft.estimate import ModelShape
from sidrec.sft.examples import ExampleCollator, ExampleRenderer
from sidrec.sft.export import close_folder, complete_folder
from sidrec.sft.hub import HubRepository
from sidrec.sft.item_dropout import ItemDropout
from sidrec.sft.progress import show_progress, stage_screen
from sidrec.sft.training_arguments import with_hardware
from sidrec.sft.unsharded import load_whole
from sidrec.sft.validation import sample_cases
from sidrec.tokenizer.semantic_ids import SemanticIds

NO_GAIN = 3  # exit code
KNN_CASES = 2000  # valid cases on which the item-KNN of history_score is chosen


def practise(config: RlConfig, objective: ObjectiveConfig, training: RlTrainerConfig) -> None:
    """Make the run directory's rl/, or say that it is finished; then upload it where that is asked for. Every process calls it."""
    with stage_screen("rl") as screen:
        refuse_contradictions(config, objective, training)
        training = with_hardware(training)
        arguments = grpo_arguments(training, config.run_dir / "rl" / "checkpoints")
        again = f"accelerate launch sft/train.py --run_dir {config.run_dir}"
        sft_folder = decided_by_the_first(lambda: require_finished(config.run_dir, "sft", again))
        settings = fingerprint(config, objective, training, leave_out=UNDECISIVE)
        inputs = (
            config.run_dir / "data" / "manifest.json",
            config.run_dir / "sid" / "codes_all.npy",
            sft_folder / "manifest.json",
        )
        stage = Stage(config.run_dir, "rl", settings | {"world_size": arguments.world_size}, inputs)
        hub = HubRepository.asked_for(training)
        if not finished_already(stage, config.overwrite, screen):
            start = prepare(config, objective, training, sft_folder)
            with building_together(stage, config.overwrite) as folder:
                screen.log_on_to(folder / "log.txt")
                train_model(folder, start, config, objective, arguments, screen)
            close_folder(stage.folder)
        if config.stop_if_no_gain and read_json(stage.folder / "log.json")["kept_step"] == 0:
            screen.say("rl: the SFT model was not bettered, so --stop_if_no_gain ends here with exit code 3")
            raise SystemExit(NO_GAIN)
        if hub is not None:
            hub.upload(stage.folder, screen)


@dataclass(frozen=True)
class PracticeStart:
    """What RL begins with."""

    sft_folder: Path
    sids: SemanticIds
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    prompts: TrainingRows
    rewards: list[Any]  # functions: of `sidrec.rl.rewards`, or dense ones where every item is looked at
    valid_cases: EvalCases
    of_lists: ListFigures


def prepare(config: RlConfig, objective: ObjectiveConfig, training: RlTrainerConfig, sft_folder: Path) -> PracticeStart:
    """Load and make all that RL begins with. Raises InputError for what does not fit; writes nothing."""
    dataset, sids = Dataset.load(config.run_dir), SemanticIds.load(config.run_dir)
    if training.num_generations > sids.n_items:
        raise InputError(
            f"num_generations={training.num_generations} distinct items cannot be drawn "
            f"from a catalogue of {sids.n_items}; lower it."
        )
    valid_cases = sample_cases(dataset.cases("valid", objective.value_column), config.valid_users, training.seed)
    values = None if objective.value_column is None else ValueSource(dataset, objective.value_column, training.seed)
    categories = categories_of(objective, dataset)
    load_whole()
    model = AutoModelForCausalLM.from_pretrained(sft_folder, dtype=torch.float32)
    if isinstance(model, RqTransformerForCausalLM):
        model.set_dropout(0.0)  # what is drawn, and what is learnt from it, is of one policy
    tokenizer = AutoTokenizer.from_pretrained(sft_folder)
    renderer = Renderer.load(sft_folder, sids)
    if renderer.normaliser != "children":
        raise InputError(
            f"{sft_folder} was trained with normaliser={renderer.normaliser}, and RL improves the policy over existing codes; "
            "train it with `--normaliser children`."
        )
    rewards: list[Any]
    if objective.draw == "every_item":
        if not isinstance(model, RqTransformerForCausalLM):
            raise InputError(
                f"draw=every_item needs an RQ-Transformer, which gives every item's probability in one pass; the model in {sft_folder} is "
                f"{model.config.model_type}: set draw to gumbel."
            )
        prompts = history_rows(dataset.train_sequences, renderer.max_items, sids.n_levels, config.positions_per_user)
        rewards = dense_rewards_of(objective, values, categories, dataset, sids)
    else:
        prompts = training_prompts(
            dataset.train_sequences, renderer, tokenizer, config.positions_per_user, config.open_questions
        )
        target_codes = sids.codes[prompts["target"]].tolist()  # of open questions, no reward reads them
        prompts = prompts.add_column("target_codes", target_codes)
        rewards = rewards_of(objective, training, values, categories, dataset, sids)
    of_lists = ListFigures.of(dataset, valid_cases, values, categories)
    return PracticeStart(sft_folder, sids, model, tokenizer, renderer, prompts, rewards, valid_cases, of_lists)


def rewards_of(
    objective: ObjectiveConfig,
    training: RlTrainerConfig,
    values: ValueSource | None,
    categories: Categories | None,
    dataset: Dataset,
    sids: SemanticIds,
) -> list[AskedReward]:
    """The configured rewards; items' vectors are the sums of their codes'. item-KNN is fitted only where `history_score` asks for it."""
    sources = RewardSources(
        dataset.train_sequences,
        item_vectors(sids),
        training.num_generations,
        lambda: tune_item_knn(dataset, sample_cases(dataset.cases("valid"), KNN_CASES, training.seed))[0],
        values,
        objective.hit_k,
        categories,
    )
    return reward_functions(objective.rewards, sources)


def dense_rewards_of(
    objective: ObjectiveConfig,
    values: ValueSource | None,
    categories: Categories | None,
    dataset: Dataset,
    sids: SemanticIds,
) -> list[DenseReward]:
    """The configured rewards over the whole catalogue, items in the order of the trie's leaves."""
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    items = trie.item_of_leaf[torch.arange(trie.n_items)].numpy()
    counts = np.bincount(np.concatenate(dataset.train_sequences), minlength=dataset.n_items)
    sources = DenseSources(
        trie,
        items,
        counts[items],
        item_vectors(sids)[items],
        objective.hit_k,
        values,
        dataset.train_sequences,
        categories,
    )
    return dense_rewards(objective.rewards, sources)


def categories_of(objective: ObjectiveConfig, dataset: Dataset) -> Categories | None:
    column, quotas = objective.quota_column, objective.quotas or []
    return None if column is None else Categories.of(dataset, column, quotas)


def item_vectors(sids: SemanticIds) -> np.ndarray:
    """float32 [N, D]: the sums of the items' codes."""
    return np.sum([book[codes] for book, codes in zip(sids.codebooks, sids.codes.T, strict=True)], axis=0)


def refuse_contradictions(config: RlConfig, objective: ObjectiveConfig, training: RlTrainerConfig) -> None:
    """Raise InputError for settings of which each is possible, but not beside the others."""
    by_value = training.metric_for_best_model.endswith("kept_value@10")
    if by_value and objective.value_column is None:
        raise InputError(
            f"metric_for_best_model={training.metric_for_best_model} is of values; name their column of the log by value_column."
        )
    if training.metric_for_best_model.endswith("kept_quotas@10") and objective.quota_column is None:
        raise InputError(
            f"metric_for_best_model={training.metric_for_best_model} is of quotas; reward by category_quota and name quota_column."
        )
    refuse_unknown_rewards(objective.rewards, objective.value_column, needed=by_value)
    if objective.draw != "every_item" and training.per_device_train_batch_size % training.num_generations:
        raise InputError(
            f"per_device_train_batch_size={training.per_device_train_batch_size} is not a multiple of "
            f"num_generations={training.num_generations}: a process holds whole groups; change one."
        )
    if len(training.reward_weights or objective.rewards) != len(objective.rewards):
        raise InputError(
            f"reward_weights has {len(training.reward_weights or [])} numbers for {len(objective.rewards)} rewards; give one each."
        )
    if config.open_questions != ("history_score" in objective.rewards):
        raise InputError(
            f"open_questions={config.open_questions} and rewards={' '.join(objective.rewards)} do not fit: history_score rewards open "
            "questions and nothing else does; set both or neither."
        )
    steps_at_once = training.steps_per_generation or training.gradient_accumulation_steps
    if objective.objective == "s_dpo" and steps_at_once != 1:
        raise InputError("objective=s_dpo compares whole groups; set gradient_accumulation_steps to 1.")


def train_model(
    folder: Path,
    start: PracticeStart,
    config: RlConfig,
    objective: ObjectiveConfig,
    arguments: GRPOConfig,
    screen: Screen,
) -> None:
    """Train from the last whole checkpoint on, and write the best model into `folder`, the SFT model where none was better."""
    arguments.max_completion_length = start.sids.n_levels
    trainer = make_trainer(start, config, objective, arguments)
    shape = ModelShape.of(trainer.model)
    asked = in_words(start.prompts, arguments, objective)
    show_progress(trainer, screen, f"{shape.parameters / 1e6:.2f}M parameters, {asked}, on {arguments.device.type}")
    whole = last_whole_checkpoint(folder / "checkpoints", arguments.world_size, screen.say)
    trainer.train(resume_from_checkpoint=whole)
    trainer.accelerator.wait_for_everyone()  # one that is done may delete the checkpoint that another still reads
    finish(folder, trainer, start, screen)


def make_trainer(
    start: PracticeStart,
    config: RlConfig,
    objective: ObjectiveConfig,
    arguments: GRPOConfig,
) -> SidGRPOTrainer:
    """The trainer of groups, or of exact expectations, which has batches of whole histories."""
    common: dict[str, Any] = {
        "model": start.model,
        "args": arguments,
        "processing_class": start.tokenizer,
        "train_dataset": start.prompts,
        "eval_dataset": start.prompts.select([0]),  # asked for by Trainer, never read
        "renderer": start.renderer,
        "objective": objective,
        "of_lists": start.of_lists,
        "recall_margin": config.recall_margin,
        "reference": copy.deepcopy(start.model) if objective.needs_reference else None,
        "trie": SidTrie(torch.from_numpy(start.sids.codes), start.sids.level_sizes),
        "valid_cases": start.valid_cases,
        "callbacks": [SealCheckpoints(), *early_stopping(config.early_stopping_patience)],
    }
    if objective.draw != "every_item":
        return SidGRPOTrainer(reward_funcs=start.rewards, **common)
    drop = ItemDropout(config.item_dropout, arguments.seed)
    common["callbacks"].append(drop)
    render = ExampleRenderer(start.renderer, [], [], start.tokenizer.eos_token_id, {})
    collate = HistoryCollator(ExampleCollator(render, start.tokenizer.pad_token_id, drop))
    process = (arguments.seed, arguments.process_index, arguments.world_size)
    batches = LengthBatches.of_items([len(items) for items in start.prompts["items"]], config.batch_items, *process)
    return ExactGRPOTrainer(dense_rewards=start.rewards, batches=batches, collate=collate, **common)


def in_words(prompts: TrainingRows, arguments: GRPOConfig, objective: ObjectiveConfig) -> str:
    """What is asked, and of what the expected reward is made."""
    if objective.draw != "every_item":
        return f"{len(prompts):,} questions, groups of {arguments.num_generations}"
    asked = sum(len(items) - context for items, context in zip(prompts["items"], prompts["context"], strict=True))
    return f"{asked:,} questions, exact over every item"


def finish(folder: Path, trainer: SidGRPOTrainer, start: PracticeStart, screen: Screen) -> None:
    """Save the best of the checkpoints and the SFT model, the log and its picture, and say which it was."""
    # by step: a resumed run measures the checkpoint that it goes on from once more
    measured = list({row["step"]: row for row in trainer.state.log_history if "eval_recall@10" in row}.values())
    metric = trainer.args.metric_for_best_model
    first, best = measured[0], max(measured, key=lambda row: row[metric])
    trainer.save_model(str(folder))
    if not trainer.accelerator.is_main_process:
        return
    if best["step"] == 0:  # no checkpoint beat the model that training began with
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(start.sft_folder / name, folder / name)
    # Trainer takes a step too many where a run that was killed after its last one goes on (sft/early_stopping.py)
    log = [row for row in trainer.state.log_history if row["step"] <= trainer.state.max_steps]
    draw_training(log, folder / "training.png")
    write_json(folder / "log.json", {"kept_step": best["step"], "log": log})
    complete_folder(folder, trainer.renderer, start.sids, measured)
    screen.summary(
        "rl",
        [
            f"valid Recall@10 {first['eval_recall@10']:.4f} (SFT) → {best['eval_recall@10']:.4f}, NDCG@10 "
            f"{first['eval_ndcg@10']:.4f} → {best['eval_ndcg@10']:.4f} at step {best['step']} of {trainer.state.max_steps}: "
            + bought(first, best, metric if metric.startswith("eval_") else f"eval_{metric}"),
            f"the model is in {folder}, what training logged in {folder / 'log.txt'} and log.json",
        ],
    )
