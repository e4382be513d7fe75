"""RL settings: the run, the objective with its groups and rewards, and the training. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sidrec.pipeline.errors import InputError
from sidrec.sft import trainer_config
from sidrec.sft.trainer_config import (
    METRICS,
    TrainerConfig,
    metric_named,
    refuse_bad_numbers,
    refuse_early_stopping_below_zero,
)

ObjectiveName = Literal["grpo", "dr_grpo", "s_dpo", "dapo", "gspo", "ecpo", "gbpo"]
Draw = Literal["every_item", "gumbel", "independent", "beams"]
AIMS = ("novelty", "diversity", "coverage", "evenness", "value", "quotas")  # of lists of ten; `rl/aims.py`
KEPT_METRICS = (
    "eval_kept_ndcg@10",
    "eval_kept_novelty@10",
    "eval_kept_diversity@10",
    "eval_kept_coverage@10",
    "eval_kept_evenness@10",
    "eval_kept_value@10",
    "eval_kept_quotas@10",
)
DENSE = (
    "exact_hit",
    "hit_at_k",
    "prefix_credit",
    "novelty",
    "coverage",
    "category_quota",
    "calibrated_popularity",
    "diversity",
    "logged_value",
    "predicted_value",
    "ndcg_at_k",
)  # rewards that say something of every item at once
EXACT_OBJECTIVES = ("grpo", "dr_grpo")  # of which the expectation over every item is taken


@dataclass
class RlConfig:
    """Sharpen the fine-tuned model by GRPO with recall rewards under constrained decoding; the model goes to the run directory's rl/."""

    run_dir: Path = field(
        default=Path("outputs/demo"), metadata={"help": "Run directory; reads data/, sid/ and sft/ there, writes rl/."}
    )
    positions_per_user: int = field(
        default=5,
        metadata={"help": "Questions a user: their newest training items, each asked after what came before it."},
    )
    open_questions: bool = field(
        default=False,
        metadata={
            "help": "One question more a user: what is taken after all training interactions, which nothing in training knows; "
            "only history_score rewards its items, and needs them.",
            "rare": True,
        },
    )
    batch_items: int = field(
        default=4096,
        metadata={"help": "draw=every_item: items of histories a step, over all processes, padding included."},
    )
    item_dropout: float = field(
        default=0.0,
        metadata={
            "help": "draw=every_item: share of a history's items that are left out, others at every pass, so that an answer that was "
            "learnt by heart is asked after another history."
        },
    )
    valid_users: int = field(
        default=5000, metadata={"help": "Valid cases (at most) on which the checkpoint is chosen, drawn once."}
    )
    early_stopping_patience: int = field(
        default=4,
        metadata={
            "help": "Measurements in a row without a better one (metric_for_best_model) that end training; 0: none."
        },
    )
    recall_margin: float = field(
        default=0.05,
        metadata={
            "help": "Share of the SFT model's Recall@10 on valid that may be lost for another aim (metric_for_best_model)."
        },
    )
    stop_if_no_gain: bool = field(
        default=False,
        metadata={
            "help": "End with exit code 3 where no checkpoint is better than the SFT model, so that a script does not go on."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete what rl/ holds and train again."})

    def __post_init__(self) -> None:
        refuse_bad_numbers(self, {"valid_users": 1, "positions_per_user": 0, "batch_items": 1})
        if not 0 <= self.item_dropout < 1:
            raise InputError(f"item_dropout={self.item_dropout} is no share of items; give 0 or more, and less than 1.")
        if not 0 <= self.recall_margin <= 1:
            raise InputError(f"recall_margin={self.recall_margin} is no share; give 0 to 1.")
        refuse_early_stopping_below_zero(self.early_stopping_patience)
        if self.positions_per_user == 0 and not self.open_questions:
            raise InputError(
                "positions_per_user=0 and open_questions=False leave no question to practise on; "
                "raise positions_per_user or set open_questions to true."
            )


@dataclass
class ObjectiveConfig:
    """What is maximised, over which groups, for which rewards."""

    objective: ObjectiveName = field(
        default="dr_grpo",
        metadata={
            "help": "grpo (arXiv 2402.03300), dr_grpo (2503.20783), s_dpo (2406.09215: the taken item against the others of its group); "
            "experimental: dapo (2503.14476: set epsilon_high), gspo (2507.18071), ecpo (2506.13695), gbpo (2508.20900)."
        },
    )
    draw: Draw = field(
        default="gumbel",
        metadata={
            "help": "What a reward is expected over: every_item (exact; RQ-Transformers alone), or groups: gumbel (distinct items, "
            "weighted), independent (may repeat), beams (the most probable ones: no sample, so the gradient is biased). Left out: "
            "every_item where the model, the catalogue's size and the rewards allow it."
        },
    )
    importance_weights: bool = field(
        default=True,
        metadata={
            "help": "Weigh a group's items by how they were drawn, which makes the gradient that of the reward expected under π.",
            "rare": True,
        },
    )
    inject_target: bool = field(
        default=True,
        metadata={"help": "Put the taken item into every group, weighted by its own probability (gumbel only)."},
    )
    rewards: list[str] = field(
        default_factory=lambda: ["exact_hit", "prefix_credit"],
        metadata={
            "help": "Rewards that are added up, weighted by reward_weights: exact_hit, hit_at_k (Recall of hit_k draws), prefix_credit, "
            "rank_penalty; of the column value_column: logged_value (a hit, weighted by the taken item's value as a multiple of the mean), "
            "predicted_value (what a value model predicts for an item, in standard deviations above the mean); of lists: coverage, "
            "novelty, diversity, category_quota (of quota_column), calibrated_popularity (as popular as what a user takes); "
            "experimental: ndcg_at_k (NDCG of a list drawn by π), collaborative_score, embedding_similarity, novel_hit, "
            "history_score; or a function of your own as my_package.my_reward. "
            "Left out: hit_at_k, and of groups exact_hit and prefix_credit."
        },
    )
    value_column: str | None = field(
        default=None,
        metadata={
            "help": "logged_value, predicted_value: the column of the log with numbers that they are of, such as rating, price or "
            "dwell_seconds, in any unit.",
            "rare": True,
        },
    )
    quota_column: str | None = field(
        default=None,
        metadata={
            "help": "category_quota: the column of the catalogue whose categories have quotas, such as genres or categories; commas part "
            "several of an item.",
            "rare": True,
        },
    )
    quotas: list[str] | None = field(
        default=None,
        metadata={
            "help": "category_quota: shares of lists' items as drama=.3 comedy=.2; the other categories share the rest, as the training "
            "log has them. Left out: all as the training log has them.",
            "rare": True,
        },
    )
    hit_k: list[int] = field(
        default_factory=lambda: [20],
        metadata={
            "help": "hit_at_k: K, the draws of which one is to be the taken item; several are averaged. ndcg_at_k: the list's length."
        },
    )
    token_credit: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a credit for every code: 1 up to the first wrong one, -1 for that, 0 behind it.",
            "rare": True,
        },
    )
    kl_weight: float = field(
        default=0.0, metadata={"help": "Weight of the exact KL divergence to the SFT model at the codes drawn."}
    )
    sft_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of the SFT loss on the taken items, which protects the tail."}
    )
    s_dpo_beta: float = field(
        default=1.0, metadata={"help": "s_dpo: how strongly the model is held to the SFT model.", "rare": True}
    )

    def __post_init__(self) -> None:
        if not self.rewards:
            raise InputError("rewards has nothing; give exact_hit or others, which `--help` lists.")
        refuse_half_a_quota(self)
        if any(k < 1 for k in self.hit_k) or not self.hit_k:
            raise InputError(f"hit_k={self.hit_k} must be numbers of draws, 1 or more.")
        if self.draw == "every_item" and self.objective not in EXACT_OBJECTIVES:
            raise InputError(
                f"objective={self.objective} needs groups; set draw to gumbel, or objective to {' or '.join(EXACT_OBJECTIVES)}."
            )
        if self.inject_target and self.draw not in ("gumbel", "every_item"):
            raise InputError(f"inject_target needs draw=gumbel, not {self.draw}: other groups have no place for it.")
        if self.objective == "s_dpo" and not self.inject_target:
            raise InputError("objective=s_dpo compares the taken item with others; set inject_target to true.")
        refuse_bad_numbers(self, dict.fromkeys(("token_credit", "kl_weight", "sft_loss_weight"), 0), ("s_dpo_beta",))

    @property
    def needs_reference(self) -> bool:
        return self.kl_weight > 0 or self.objective == "s_dpo"


def refuse_half_a_quota(objective: ObjectiveConfig) -> None:
    """Raise InputError unless category_quota and quota_column are both there or neither."""
    is_asked = "category_quota" in objective.rewards
    if is_asked and objective.quota_column is None:
        raise InputError(
            "rewards has category_quota; name the column of the catalogue with the categories by quota_column."
        )
    if not is_asked and (objective.quota_column is not None or objective.quotas):
        raise InputError(
            "quota_column and quotas are read by category_quota alone; add it to rewards, or leave them out."
        )


@dataclass
class RlTrainerConfig(TrainerConfig):
    """The trainer's settings with RL's defaults."""

    per_device_train_batch_size: int = field(
        default=512, metadata={"help": "Rollouts a process and step: prompts times num_generations."}
    )
    num_generations: int = field(default=16, metadata={"help": "G, the distinct items drawn for each prompt."})
    max_steps: int = field(default=30, metadata={"help": "Updates; -1: as many as num_train_epochs takes."})
    num_train_epochs: float = field(
        default=3.0, metadata={"help": "Passes over all prompts where max_steps is -1.", "rare": True}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up: steps, or a share of all steps when below 1.", "rare": True}
    )
    reward_weights: list[float] | None = field(
        default_factory=lambda: [1.0, 0.2], metadata={"help": "Weights of `rewards`, in their order; none: 1 each."}
    )
    num_iterations: int = field(
        default=1, metadata={"help": "Passes over each batch of rollouts before new ones are drawn.", "rare": True}
    )
    steps_per_generation: int | None = field(
        default=None,
        metadata={"help": "Batches drawn at once; left out: gradient_accumulation_steps.", "rare": True},
    )
    epsilon: float = field(default=0.2, metadata={"help": "π / π_old is clipped below 1 - epsilon.", "rare": True})
    epsilon_high: float | None = field(
        default=None, metadata={"help": "It is clipped above 1 + epsilon_high; left out: epsilon.", "rare": True}
    )
    disable_dropout: bool = field(
        default=False, metadata={"help": "Switch off the dropout that a pretrained model has.", "rare": True}
    )
    shuffle_dataset: bool = field(
        default=True, metadata={"help": "Ask the questions in an order drawn by the seed.", "rare": True}
    )
    eval_strategy: Literal["steps", "epoch"] = field(
        default="steps",
        metadata={"help": "When to measure valid Recall@10: every eval_steps updates, or every epoch.", "rare": True},
    )
    eval_steps: float | None = field(default=10, metadata={"help": "Updates between two measurements."})
    eval_on_start: bool = field(
        default=True,
        metadata={"help": "Measure the SFT model first: it is a candidate too.", "rare": True},
    )
    save_steps: float = field(
        default=10, metadata={"help": "Updates between two checkpoints; must equal eval_steps.", "rare": True}
    )
    metric_for_best_model: str = field(
        default="eval_kept_ndcg@10",
        metadata={
            "help": "What chooses the checkpoint. eval_kept_ndcg@10: NDCG@10 where Recall@50 is not below the SFT model's. "
            f"eval_kept_{', eval_kept_'.join(f'{aim}@10' for aim in AIMS)}: where Recall@10 is not below it by more than recall_margin. Or "
            "eval_recall@10, eval_ndcg@10, eval_recall@50."
        },
    )
    logging_steps: float = field(default=5, metadata={"help": "Updates between two entries of log.txt.", "rare": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = dict.fromkeys(("num_generations", "num_iterations", "steps_per_generation"), 1)
        refuse_bad_numbers(self, counts | {"epsilon": 0, "epsilon_high": 0})
        if self.num_generations < 2:
            raise InputError("num_generations=1 leaves nothing to compare an item with; give 2 or more.")
        if not all(abs(weight) < float("inf") for weight in self.reward_weights or []):
            raise InputError(f"reward_weights={self.reward_weights} has one that is no number; give numbers.")
        self.metric_for_best_model = metric_named(self.metric_for_best_model, (*KEPT_METRICS, *METRICS))


CONFIGS = (RlConfig, ObjectiveConfig, RlTrainerConfig)
UNDECISIVE = ("run_dir", "overwrite", "stop_if_no_gain", *trainer_config.UNDECISIVE)
_SERVED = "it would train another policy than the one that is served: items are drawn from π over the codes that exist, by draw"
REFUSED = trainer_config.REFUSED | {
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "generation_kwargs",
            "chat_template_kwargs",
            "cache_implementation",
            "num_generations_eval",
            "use_vllm",
            "vllm_mode",
            "vllm_model_impl",
            "vllm_enable_sleep_mode",
            "vllm_structured_outputs_regex",
            "vllm_server_base_url",
            "vllm_server_host",
            "vllm_server_port",
            "vllm_server_timeout",
            "vllm_group_port",
            "vllm_gpu_memory_utilization",
            "vllm_max_model_length",
            "vllm_tensor_parallel_size",
            "vllm_importance_sampling_correction",
            "vllm_importance_sampling_mode",
            "vllm_importance_sampling_clip_max",
            "vllm_importance_sampling_clip_min",
            "vllm_importance_sampling_cap",
            "use_transformers_continuous_batching",
            "transformers_continuous_batching_config",
            "use_transformers_paged",
            "max_tool_calling_iterations",
        ),
        _SERVED,
    ),
    "max_completion_length": "an item is as many tokens as a semantic ID has levels",
    "mask_truncated_completions": "no completion is truncated: an item is as many tokens as a semantic ID has levels",
    "generation_batch_size": "it follows from per_device_train_batch_size and steps_per_generation",
    "ds3_gather_for_generation": "items are always drawn with whole weights",
    "cast_lm_head_to_fp32": "log-probabilities are always in float32",
    **dict.fromkeys(
        (
            "loss_type",
            "scale_rewards",
            "importance_sampling_level",
            "multi_objective_aggregation",
            "delta",
            "sapo_temperature_neg",
            "sapo_temperature_pos",
            "vespo_k_pos",
            "vespo_lambda_pos",
            "vespo_k_neg",
            "vespo_lambda_neg",
            "off_policy_mask_threshold",
            "top_entropy_quantile",
            "entropy_coef",
            "use_adaptive_entropy",
            "entropy_coef_min",
            "entropy_coef_max",
            "entropy_coef_delta",
            "entropy_target",
        ),
        "it is TRL's and has no effect here; set objective instead",
    ),
    **dict.fromkeys(
        ("beta", "use_bias_correction_kl", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
        "it is TRL's and has no effect here; set kl_weight instead",
    ),
    **dict.fromkeys(
        (
            "log_completions",
            "log_multimodal",
            "num_completions_to_print",
            "log_unique_prompts",
            "log_completions_hub_repo",
        ),
        "rl/log.json has the figures of every update instead of the drawn tokens",
    ),
    "train_sampling_strategy": "questions are asked in the order of shuffle_dataset",
    "neftune_noise_alpha": "noise would train another policy than the one that is served",
}
