"""SFT from a run directory's data and semantic IDs to a finished model folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset as TrainingRows
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig

from sidrec.data.dataset import Dataset, EvalCases
from sidrec.data.new_events import replayed_sequences
from sidrec.decoding.output_head import causal_model
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.renderer import RENDERER_FILE, Renderer
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.launch import building_together, finished_already
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage
from sidrec.sft.advice import BaselineNdcgs, advice, against_item_knn, baseline_ndcgs, dropout_in_doubt, losses_in_words
from sidrec.sft.backbone import add_dropout, folder_of, load_backbone
from sidrec.sft.batches import LengthBatches
from sidrec.sft.checkpoints import SealCheckpoints, last_whole_checkpoint
from sidrec.sft.early_stopping import early_stopping
from sidrec.sft.embedding_init import usable_init
from sidrec.sft.english import ENGLISH_FILE, english_in_words, perplexity
from sidrec.sft.estimate import ModelShape, estimate_of
from sidrec.sft.examples import ExampleCollator, ExampleRenderer, chat_openings, token_ids
from sidrec.sft.export import close_folder, complete_folder
from sidrec.sft.hub import HubRepository
from sidrec.sft.item_dropout import ItemDropout
from sidrec.sft.node_init import add_catalogue
from sidrec.sft.one_position import one_position_model
from sidrec.sft.own_text import MOST_TEXTS, own_texts
from sidrec.sft.progress import show_progress, stage_screen
from sidrec.sft.questions import Questions, item_traits
from sidrec.sft.quiet_rows import quiet_rows
from sidrec.sft.settings import (
    BackboneConfig,
    SftConfig,
    SftTrainerConfig,
    TaskConfig,
    WeightsConfig,
    undecisive,
)
from sidrec.sft.tasks import task_rows
from sidrec.sft.trainer import SidSFTTrainer
from sidrec.sft.training_arguments import sft_arguments, with_hardware
from sidrec.sft.unsharded import refuse_adapters_in_parts, whole_model
from sidrec.sft.validation import sample_cases
from sidrec.sft.vocabulary import add_sid_tokens
from sidrec.sft.weights import merge, with_adapters
from sidrec.tokenizer.semantic_ids import SemanticIds

FEWEST_STEPS = 24  # of a pass, where batch_items leaves the choice
FEWEST_BATCH_ITEMS = 256


def fine_tune(
    config: SftConfig,
    tasks: TaskConfig,
    backbone: BackboneConfig,
    weights: WeightsConfig,
    training: SftTrainerConfig,
) -> None:
    """Make the run directory's sft/, or say that it is finished; then upload it where that is asked for. Every process calls it."""
    with stage_screen("sft") as screen:
        training = with_hardware(training)
        arguments = sft_arguments(training, config.run_dir / "sft" / "checkpoints")
        settings = fingerprint(config, tasks, backbone, weights, training, leave_out=undecisive(config))
        inputs = (config.run_dir / "data" / "manifest.json", config.run_dir / "sid" / "codes_all.npy")
        stage = Stage(config.run_dir, "sft", settings | {"world_size": arguments.world_size}, inputs)
        hub = HubRepository.asked_for(training)
        if not finished_already(stage, config.overwrite, screen):
            if backbone.model_name_or_path is not None:
                folder_of(backbone.model_name_or_path, screen)  # a packaged model's folder is made before all else
            start = prepare(config, tasks, backbone, weights, training)
            with building_together(stage, config.overwrite) as folder:
                screen.log_on_to(folder / "log.txt")
                train_model(folder, start, config, backbone, weights, arguments, screen)
            close_folder(stage.folder)
        if hub is not None:
            hub.upload(stage.folder, screen)


@dataclass(frozen=True)
class TrainingStart:
    """What training begins with. english: the perplexity of a pretrained model, None for one that writes no words."""

    dataset: Dataset
    sids: SemanticIds
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    render: ExampleRenderer
    rows: TrainingRows
    drop: ItemDropout
    with_text: bool
    valid_cases: EvalCases
    english: float | None


def prepare(
    config: SftConfig,
    tasks: TaskConfig,
    backbone: BackboneConfig,
    weights: WeightsConfig,
    training: SftTrainerConfig,
) -> TrainingStart:
    """Load and make all that training begins with. Raises InputError for what does not fit; writes nothing."""
    seed = training.seed
    dataset, sids = Dataset.load(config.run_dir), SemanticIds.load(config.run_dir)
    check(dataset, sids, config, tasks, training)
    if tasks.own_text and backbone.model_name_or_path is None:
        raise InputError(
            "own_text keeps the language of a pretrained model, and one from scratch has none; leave it out."
        )
    if backbone.one_position:
        refuse_for_one_position(config, tasks, backbone, weights)
    if (backbone.joint_levels or 1) > sids.n_levels:
        raise InputError(
            f"joint_levels={backbone.joint_levels} is more than the {sids.n_levels} codes of an item; give fewer."
        )
    refuse_adapters_in_parts(weights.train_weights)
    valid_cases = sample_cases(dataset.cases("valid"), config.valid_users, seed)
    model, tokenizer, vocabulary = start_model(dataset, sids, config, backbone, seed)
    english = None
    if isinstance(model, RqTransformerForCausalLM):
        config = replace(config, chat_template=False)  # the opening is the model's own
    elif knows_english(backbone):
        english = perplexity(model, tokenizer, vocabulary.start_token)
    render, sequences = example_renderer(dataset, sids, config, tasks, tokenizer, vocabulary), dataset.train_sequences
    if tasks.replay is not None:
        sequences = replayed_sequences(dataset, tasks.replay, seed)
    if tasks.own_text:
        n_texts = min(MOST_TEXTS, math.ceil(tasks.own_text * len(sequences)))
        render = replace(render, own_texts=own_texts(model, tokenizer, n_texts, vocabulary.start_token, seed))
    rest = 0 if render.questions is None else render.questions.longest_rest
    counts = {"question_tokens": rest, "own_texts": len(render.own_texts)}
    rows = task_rows(sequences, render.words, sids.n_levels, config.max_items, tasks, seed, **counts)
    model = with_adapters(model, weights, new_tokens=list(range(vocabulary.start_token, len(tokenizer))))
    if backbone.model_name_or_path is None and backbone.architecture == "qwen3":
        add_dropout(causal_model(model), backbone.dropout)
    drop = ItemDropout(tasks.item_dropout, seed)
    return TrainingStart(dataset, sids, model, tokenizer, render, rows, drop, tasks.with_text, valid_cases, english)


def train_model(
    folder: Path,
    start: TrainingStart,
    config: SftConfig,
    backbone: BackboneConfig,
    weights: WeightsConfig,
    arguments: SFTConfig,
    screen: Screen,
) -> None:
    """Train from the last whole checkpoint on, and write the model of the best one into `folder`."""
    trainer = SidSFTTrainer(
        model=start.model,
        args=arguments,
        processing_class=start.tokenizer,
        train_dataset=start.rows,
        eval_dataset=start.rows.select([0]),  # asked for by Trainer, never read
        data_collator=ExampleCollator(start.render, start.tokenizer.pad_token_id, start.drop),
        renderer=start.render.renderer,
        trie=SidTrie(torch.from_numpy(start.sids.codes), start.sids.level_sizes),
        valid_cases=start.valid_cases,
        vocabulary_loss_weight=config.vocabulary_loss_weight,
        batches=length_batches(start, config.batch_items, arguments),
        callbacks=[start.drop, SealCheckpoints(), *early_stopping(config.early_stopping_patience)],
    )
    opening = max(map(len, start.render.openings.values()), default=0)
    estimate = estimate_of(trainer, [length + opening for length in start.rows["length"]], start.with_text)
    screen.note(estimate.details())
    if (warning := estimate.warning()) is not None:
        screen.say(warning)
    show_progress(trainer, screen, estimate.in_words())
    whole = last_whole_checkpoint(folder / "checkpoints", arguments.world_size, screen.say)
    trainer.train(resume_from_checkpoint=whole)
    trainer.accelerator.wait_for_everyone()  # one that is done may delete the checkpoint that another still reads
    if trainer.args.eval_strategy == "no":
        trainer.evaluate()

    english = None
    if start.english is not None:
        with whole_model(trainer) as model:
            english = start.english, perplexity(model, start.tokenizer)
    trainer.save_model(str(folder if weights.train_weights == "full" else folder / "adapter"))
    if not trainer.accelerator.is_main_process:
        return
    if weights.train_weights != "full":
        base, _, _ = start_model(start.dataset, start.sids, config, backbone, arguments.seed)
        merge(base, folder / "adapter").save_pretrained(folder)
        start.tokenizer.save_pretrained(folder)
    ndcgs = baseline_ndcgs(start.dataset, start.valid_cases)
    finish(folder, trainer, start.sids, screen, ndcgs, english)


def knows_english(backbone: BackboneConfig) -> bool:
    """Whether the model is a pretrained one; a finished folder of this project that began from scratch is none."""
    folder = Path(backbone.model_name_or_path or "")
    is_ours = (folder / RENDERER_FILE).exists()
    return backbone.model_name_or_path is not None and (not is_ours or (folder / ENGLISH_FILE).exists())


def length_batches(start: TrainingStart, batch_items: int, arguments: SFTConfig) -> LengthBatches | None:
    """Batches of about `batch_items` items, or less where a pass would have too few steps; for 0 of as many rows as the trainer's settings
    say; None where those ask for another order."""
    process = (arguments.seed, arguments.process_index, arguments.world_size)
    if not batch_items:
        parts = arguments.gradient_accumulation_steps
        rows = arguments.train_batch_size * arguments.world_size * parts
        by_length = arguments.train_sampling_strategy == "group_by_length"
        return LengthBatches.of_rows(list(start.rows["length"]), rows, *process, parts) if by_length else None
    lengths = [length // start.sids.n_levels for length in start.rows["length"]]
    small_log = max(FEWEST_BATCH_ITEMS, sum(lengths) // FEWEST_STEPS)
    return LengthBatches.of_items(lengths, min(batch_items, small_log), *process)


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
        if backbone.one_position and not isinstance(model, RqTransformerForCausalLM):
            raise InputError(
                f"{folder} was trained with layout=flat, and layout=one_position begins with a model without semantic IDs; name the model "
                "that the folder began with, or leave layout out."
            )
        return model, tokenizer, Renderer.load(folder, sids).vocabulary
    texts = dataset.items["text"].to_list()
    if backbone.one_position and backbone.model_name_or_path is not None:
        model, vocabulary = one_position_model(model, tokenizer, dataset, sids, config, backbone, seed)
        return model, tokenizer, vocabulary
    if isinstance(model, RqTransformerForCausalLM):  # whose rows start from the trie's centroids instead
        vocabulary = add_sid_tokens(model, tokenizer, sids, texts, "mean", seed)
        add_catalogue(model, vocabulary, sids, dataset.train_sequences, seed, own_rows=backbone.own_rows)
        return model, tokenizer, vocabulary
    embedding_init = usable_init(config.embedding_init, from_scratch=backbone.model_name_or_path is None)
    old_rows = len(tokenizer)
    vocabulary = add_sid_tokens(model, tokenizer, sids, texts, embedding_init, seed)
    if backbone.model_name_or_path is not None and embedding_init != "mean":
        quiet_rows(model, Renderer.build(sids, vocabulary, config.max_items), dataset.train_sequences, old_rows)
    return model, tokenizer, vocabulary


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
    title_ids, questions = token_ids(titles, tokenizer, longest), None
    if tasks.question_to_item:
        in_questions = tokenizer.batch_decode(title_ids)
        questions = Questions(in_questions, item_traits(dataset.items), tokenizer)
    return ExampleRenderer(
        renderer,
        token_ids(texts, tokenizer, longest),
        title_ids,
        tokenizer.eos_token_id,
        openings,
        questions,
    )


def check(
    dataset: Dataset, sids: SemanticIds, config: SftConfig, tasks: TaskConfig, training: SftTrainerConfig
) -> None:
    """Raise InputError for what would fail, or mean nothing, after hours of training."""
    if sids.n_items != dataset.n_items:
        raise InputError(
            f"{config.run_dir / 'sid'} has {sids.n_items} items, {config.run_dir / 'data'} has {dataset.n_items}; "
            "run `bash run_tokenizer.sh` again."
        )
    if training.eval_strategy == "no" and config.early_stopping_patience:
        raise InputError(
            f"early_stopping_patience={config.early_stopping_patience} needs measurements, and eval_strategy=no makes none; set it to 0."
        )
    if tasks.next_item_windows and tasks.window_items >= config.max_items:
        raise InputError(
            f"window_items={tasks.window_items} must be less than max_items={config.max_items}: a window holds an answer, too."
        )


def refuse_for_one_position(
    config: SftConfig, tasks: TaskConfig, backbone: BackboneConfig, weights: WeightsConfig
) -> None:
    """Raise InputError for what a model that knows items alone cannot do."""
    pretrained = backbone.model_name_or_path is not None
    model = "a model with one position an item" if pretrained else "an rq_transformer"
    remedy = f"{model} knows items alone; set "
    remedy += "--layout flat." if pretrained else "--architecture qwen3, or name a pretrained model."
    if tasks.with_text or (config.chat_template and not pretrained):
        setting = "a task with texts" if tasks.with_text else "chat_template"
        raise InputError(f"{setting} needs a model that reads words, and {remedy}")
    if config.vocabulary_loss_weight:
        raise InputError(f"vocabulary_loss_weight={config.vocabulary_loss_weight:g} is beside words, and {remedy}")
    if config.normaliser != "children":
        raise InputError(f"normaliser={config.normaliser} is over codes that do not exist, and {remedy}")
    if config.embedding_init != SftConfig.embedding_init:
        raise InputError(f"embedding_init={config.embedding_init} is for rows of words and codebooks, and {remedy}")
    if weights.train_weights != "full":
        raise InputError(f"train_weights={weights.train_weights} is for a language model's layers, and {remedy}")


def finish(
    folder: Path,
    trainer: SidSFTTrainer,
    sids: SemanticIds,
    screen: Screen,
    ndcgs: BaselineNdcgs | None,
    english: tuple[float, float] | None,
) -> None:
    """Write what makes the model folder complete, and say where it is. ndcgs: baselines' on the valid cases, where they are known.
    english: perplexity before and after, of a pretrained model."""
    if english is not None:
        write_json(folder / ENGLISH_FILE, {"perplexity_before": english[0], "perplexity_after": english[1]})
    history = [row for row in trainer.state.log_history if "eval_recall@10" in row]
    complete_folder(folder, trainer.renderer, sids, history)
    kept_step = history[-1]["step"] if trainer.args.eval_strategy == "no" else trainer.state.best_global_step
    best = next(row for row in history if row["step"] == kept_step)
    lines = [
        f"{ModelShape.of(trainer.model).parameters / 1e6:.2f}M parameters, valid Recall@10 {best['eval_recall@10']:.4f}, NDCG@10 "
        f"{best['eval_ndcg@10']:.4f} at step {best['step']} of {trainer.state.max_steps}",
        f"the model is in {folder}, what training logged in {folder / 'log.txt'}",
    ]
    losses = [row for row in trainer.state.log_history if "loss" in row]
    config = trainer.model.config
    of_codes_alone = getattr(config, "depth_head", None) == "marginal"  # other losses have more parts
    regularised = english is None and getattr(config, "spatial", None) is None  # a pretrained model has no dropout
    sentences = (
        losses_in_words(losses, best) if of_codes_alone else None,
        advice(history, best["step"], regularised=regularised),
        dropout_in_doubt(ndcgs, getattr(config, "dropout", 0.0)),
        against_item_knn(best["eval_ndcg@10"], ndcgs),
        None if english is None else english_in_words(*english),
    )
    screen.summary("sft", [*lines, *filter(None, sentences)])
