"""Stage 2: put the SID tokens into a language model's vocabulary and fine-tune it to write the next item.

accelerate launch sft/train.py --config configs/sft/demo.yaml --run_dir outputs/demo
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sidrec.data.dataset import Dataset
from sidrec.decoding.output_head import causal_model
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.renderer import RENDERER_FILE, Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.launch import begin_stage, finished_already, refuse_wrong_number_of_processes
from sidrec.pipeline.stage import Stage
from sidrec.sft.backbone import BackboneConfig, add_dropout, load_backbone
from sidrec.sft.checkpoints import last_whole_checkpoint, refuse_unsaved_measurements
from sidrec.sft.early_stopping import early_stopping
from sidrec.sft.embedding_init import row_start_for
from sidrec.sft.estimate import ModelShape, announce_estimate
from sidrec.sft.examples import ExampleCollator, ExampleRenderer, chat_openings, token_ids
from sidrec.sft.export import complete_folder
from sidrec.sft.hub import HubRepository
from sidrec.sft.item_dropout import ItemDropout
from sidrec.sft.settings import CONFIGS, SftConfig, identity_of
from sidrec.sft.tasks import TaskConfig, task_rows
from sidrec.sft.trainer import SidSFTTrainer
from sidrec.sft.unsharded import refuse_adapters_in_parts
from sidrec.sft.validation import sample_cases
from sidrec.sft.vocabulary import add_sid_tokens
from sidrec.sft.weights import merge, with_adapters
from sidrec.tokenizer.semantic_ids import SemanticIds


def main() -> None:
    refuse_wrong_number_of_processes()
    config, tasks, backbone, weights, training = parse_configs(CONFIGS)
    identity = identity_of(config, tasks, backbone, weights, training)
    inputs = (config.run_dir / "data" / "manifest.json", config.run_dir / "sid" / "codes_all.npy")
    stage = Stage(config.run_dir, "sft", identity, inputs)
    hub = HubRepository.asked_for(training)
    if finished_already(stage, config.overwrite):
        if hub is not None:
            hub.upload(stage.folder)
        return
    dataset, sids = Dataset.load(config.run_dir), SemanticIds.load(config.run_dir)
    check(dataset, sids, config, tasks)
    refuse_adapters_in_parts(weights.train_weights)
    refuse_unsaved_measurements(training)
    callbacks = early_stopping(config.early_stopping_patience, training)
    valid_cases = sample_cases(dataset.cases("valid"), config.valid_users, training.seed)

    model, tokenizer, vocabulary = start_model(dataset, sids, config, backbone, training.seed)
    render = example_renderer(dataset, sids, config, tasks, tokenizer, vocabulary)
    rows = task_rows(dataset.train_sequences, render.has_text, sids.n_levels, config.max_items, tasks, training.seed)
    model = with_adapters(model, weights, new_tokens=list(range(vocabulary.start_token, len(tokenizer))))
    if backbone.model_name_or_path is None:
        add_dropout(causal_model(model), backbone.dropout)

    drop = ItemDropout(tasks.item_dropout, training.seed)
    begin_stage(stage, config.overwrite)
    training.output_dir = str(stage.folder / "checkpoints")
    trainer = SidSFTTrainer(
        model=model,
        args=training,
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=rows.select([0]),  # asked for by Trainer, never read
        data_collator=ExampleCollator(render, tokenizer.pad_token_id, drop),
        renderer=render.renderer,
        trie=SidTrie(torch.from_numpy(sids.codes), sids.level_sizes),
        valid_cases=valid_cases,
        callbacks=[drop, *callbacks],
    )
    announce_estimate(trainer, np.asarray(rows["length"]), tasks.with_text)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(stage.folder / "checkpoints"))
    trainer.accelerator.wait_for_everyone()  # one that is done may delete the checkpoint that another still reads

    trainer.save_model(str(stage.folder if weights.train_weights == "full" else stage.folder / "adapter"))
    if not trainer.accelerator.is_main_process:
        return
    if weights.train_weights != "full":
        base, _, _ = start_model(dataset, sids, config, backbone, training.seed)
        merge(base, stage.folder / "adapter").save_pretrained(stage.folder)
        tokenizer.save_pretrained(stage.folder)
    finish(stage, trainer, sids)
    if hub is not None:
        hub.upload(stage.folder)


def start_model(
    dataset: Dataset, sids: SemanticIds, config: SftConfig, backbone: BackboneConfig, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, SidVocabulary]:
    """The model that training begins with, SID tokens in its vocabulary: the same at every call.

    A folder that SFT or RL has written goes on from where it is, if its SIDs are the run's.
    """
    torch.manual_seed(seed)  # rows of the control tokens are drawn
    model, tokenizer = load_backbone(backbone, seed)
    folder = Path(backbone.model_name_or_path or "")
    if backbone.model_name_or_path is not None and (folder / RENDERER_FILE).exists():
        return model, tokenizer, Renderer.load(folder, sids).vocabulary
    row_start = row_start_for(config.row_start, from_scratch=backbone.model_name_or_path is None)
    texts = dataset.items["text"].to_list()
    return model, tokenizer, add_sid_tokens(model, tokenizer, sids, texts, row_start, seed)


def example_renderer(
    dataset: Dataset,
    sids: SemanticIds,
    config: SftConfig,
    tasks: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: SidVocabulary,
) -> ExampleRenderer:
    """From rows of tasks to tokens; items' texts are tokenised only when a task asks for them."""
    openings = chat_openings(tokenizer) if config.chat_template else {}
    renderer = Renderer.build(sids, vocabulary, config.max_items, config.normaliser, openings.get("next_item", ()))
    texts = dataset.items["text"].to_list() if tasks.with_text else [""] * dataset.n_items
    titles = dataset.titles if tasks.with_text else texts
    longest = tasks.text_tokens
    return ExampleRenderer(
        renderer,
        token_ids(texts, tokenizer, longest),
        token_ids(titles, tokenizer, longest),
        tokenizer.eos_token_id,
        openings,
    )


def check(dataset: Dataset, sids: SemanticIds, config: SftConfig, tasks: TaskConfig) -> None:
    """Raise InputError for what would fail, or mean nothing, after hours of training."""
    if sids.n_items != dataset.n_items:
        raise InputError(
            f"{config.run_dir / 'sid'} has {sids.n_items} items, {config.run_dir / 'data'} has {dataset.n_items}; "
            "run `bash run_tokenizer.sh` again."
        )
    if config.max_items < 2:
        raise InputError(f"max_items={config.max_items} is too short: a context holds at least 2 items.")
    if tasks.next_item_windows and tasks.window_items >= config.max_items:
        raise InputError(
            f"window_items={tasks.window_items} must be less than max_items={config.max_items}: a window holds an answer, too."
        )


def finish(stage: Stage, trainer: SidSFTTrainer, sids: SemanticIds) -> None:
    """Write what makes the model folder complete, close the stage, and say where it is."""
    folder = stage.folder
    history = [row for row in trainer.state.log_history if "eval_recall@10" in row]
    complete_folder(stage, trainer.renderer, sids, history)
    kept = next(row for row in history if row["step"] == trainer.state.best_global_step)
    Console().print(
        f"sft: {ModelShape.of(trainer.model).parameters / 1e6:.2f}M parameters, valid Recall@10 {kept['eval_recall@10']:.4f}, NDCG@10 "
        f"{kept['eval_ndcg@10']:.4f} at step {kept['step']} of {trainer.state.max_steps}; the model is in {folder}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_as_command(main)
