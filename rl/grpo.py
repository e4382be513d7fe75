"""Stage 3: sharpen the fine-tuned model by GRPO (arXiv 2402.03300) with recall rewards under constrained decoding.

accelerate launch rl/grpo.py --config configs/rl/demo.yaml --run_dir outputs/demo
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from sidrec.baselines.item_knn import tune_item_knn
from sidrec.data.dataset import Dataset
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.pipeline.launch import begin_stage, finished_already, refuse_wrong_number_of_processes
from sidrec.pipeline.stage import Stage, require_finished
from sidrec.rl.prompts import training_prompts
from sidrec.rl.rewards import AskedReward, reward_functions
from sidrec.rl.settings import CONFIGS, NOT_USED, ObjectiveConfig, RlConfig, SidGRPOConfig, identity_of
from sidrec.rl.trainer import SidGRPOTrainer
from sidrec.rl.training_metrics import draw_training
from sidrec.sft.checkpoints import last_whole_checkpoint, refuse_unsaved_measurements
from sidrec.sft.early_stopping import early_stopping
from sidrec.sft.export import complete_folder
from sidrec.sft.hub import HubRepository
from sidrec.sft.unsharded import load_whole
from sidrec.sft.validation import sample_cases
from sidrec.tokenizer.semantic_ids import SemanticIds

KNN_CASES = 2000  # valid cases on which the item-KNN of history_score is chosen


def main() -> None:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    refuse_wrong_number_of_processes()
    config, objective, training = parse_configs(CONFIGS)
    sft_folder = require_finished(config.run_dir, "sft", f"accelerate launch sft/train.py --run_dir {config.run_dir}")
    identity = identity_of(config, objective, training)
    inputs = (
        config.run_dir / "data" / "manifest.json",
        config.run_dir / "sid" / "codes_all.npy",
        sft_folder / "manifest.json",
    )
    stage = Stage(config.run_dir, "rl", identity, inputs)
    hub = HubRepository.asked_for(training)
    if finished_already(stage, config.overwrite):
        if hub is not None:
            hub.upload(stage.folder)
        return
    dataset, sids = Dataset.load(config.run_dir), SemanticIds.load(config.run_dir)
    check(sids, config, training, objective)
    refuse_unsaved_measurements(training)
    callbacks = early_stopping(config.early_stopping_patience, training)
    valid_cases = sample_cases(dataset.cases("valid"), config.valid_users, training.seed)

    load_whole()
    model = AutoModelForCausalLM.from_pretrained(sft_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(sft_folder)
    renderer = Renderer.load(sft_folder, sids)
    if renderer.normaliser != "children":
        raise InputError(
            f"{sft_folder} was trained with normaliser={renderer.normaliser}, and RL improves the policy over existing codes; "
            "train it with `--normaliser children`."
        )
    prompts = training_prompts(
        dataset.train_sequences, renderer, tokenizer, config.positions_per_user, config.open_questions
    )
    target_codes = sids.codes[prompts["target"]].tolist()  # of open questions, no reward reads them
    rewards = rewards_of(objective, training, dataset, sids)

    begin_stage(stage, config.overwrite)
    training.output_dir = str(stage.folder / "checkpoints")
    training.max_completion_length = sids.n_levels
    trainer = SidGRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=training,
        processing_class=tokenizer,
        train_dataset=prompts.add_column("target_codes", target_codes),
        eval_dataset=prompts.select([0]),  # asked for by Trainer, never read
        renderer=renderer,
        objective=objective,
        reference=copy.deepcopy(model) if objective.needs_reference else None,
        trie=SidTrie(torch.from_numpy(sids.codes), sids.level_sizes),
        valid_cases=valid_cases,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(stage.folder / "checkpoints"))
    trainer.accelerator.wait_for_everyone()  # one that is done may delete the checkpoint that another still reads
    finish(stage, trainer, sids, sft_folder)
    if hub is not None:
        hub.upload(stage.folder)


def rewards_of(
    objective: ObjectiveConfig, training: SidGRPOConfig, dataset: Dataset, sids: SemanticIds
) -> list[AskedReward]:
    """The configured rewards; items' vectors are the sums of their codes'. item-KNN is fitted only where `history_score` asks for it."""
    vectors = np.sum([book[codes] for book, codes in zip(sids.codebooks, sids.codes.T, strict=True)], axis=0)
    return reward_functions(
        objective.rewards,
        dataset.train_sequences,
        vectors,
        training.num_generations,
        lambda: tune_item_knn(dataset, sample_cases(dataset.cases("valid"), KNN_CASES, training.seed))[0],
    )


def check(sids: SemanticIds, config: RlConfig, training: SidGRPOConfig, objective: ObjectiveConfig) -> None:
    """Raise InputError for what would fail in the first step, or train another policy than the one that is served."""
    if training.num_generations > sids.n_items:
        raise InputError(
            f"num_generations={training.num_generations} distinct items cannot be drawn "
            f"from a catalogue of {sids.n_items}; lower it."
        )
    if training.per_device_train_batch_size % training.num_generations:
        raise InputError(
            f"per_device_train_batch_size={training.per_device_train_batch_size} is not a multiple of "
            f"num_generations={training.num_generations}: a process holds whole groups; change one."
        )
    if training.temperature != 1.0:
        raise InputError(
            f"temperature={training.temperature} would train another policy than the one that is served; leave it at 1."
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
    for name, ours in NOT_USED.items():
        if getattr(training, name) != GRPOConfig.__dataclass_fields__[name].default:
            raise InputError(f"{name}={getattr(training, name)} is TRL's and has no effect here; set {ours} instead.")
    if objective.objective == "s_dpo" and training.steps_per_generation != 1:
        raise InputError("objective=s_dpo compares whole groups; set gradient_accumulation_steps to 1.")


def finish(stage: Stage, trainer: SidGRPOTrainer, sids: SemanticIds, sft_folder: Path) -> None:
    """Save the best of the checkpoints and the SFT model, the log and its picture, close the stage, and say which it was."""
    folder = stage.folder
    # by step: a resumed run measures the checkpoint that it goes on from once more
    measured = list({row["step"]: row for row in trainer.state.log_history if "eval_recall@10" in row}.values())
    metric = f"eval_{trainer.args.metric_for_best_model.removeprefix('eval_')}"
    start, best = measured[0], max(measured, key=lambda row: row[metric])
    trainer.save_model(str(folder))
    if not trainer.accelerator.is_main_process:
        return
    if best["step"] == 0:  # no checkpoint beat the model that training began with
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(sft_folder / name, folder / name)
    draw_training(trainer.state.log_history, folder / "training.png")
    write_json(folder / "log.json", {"kept_step": best["step"], "log": trainer.state.log_history})
    complete_folder(stage, trainer.renderer, sids, measured)
    Console().print(
        f"rl: valid Recall@10 {start['eval_recall@10']:.4f} (SFT) → {best['eval_recall@10']:.4f}, NDCG@10 "
        f"{start['eval_ndcg@10']:.4f} → {best['eval_ndcg@10']:.4f} at step {best['step']} of {trainer.state.max_steps}; "
        f"the model is in {folder}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_as_command(main)
