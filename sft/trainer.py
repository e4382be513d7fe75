"""TRL's SFTTrainer with the loss of the one policy, and a validation that recommends instead of measuring a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl import SFTTrainer

from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.policy import item_log_probs
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.decoding.trie import SidTrie
from sidrec.sft.batches import LengthBatches
from sidrec.sft.examples import NO_ITEM, NO_LABEL
from sidrec.sft.validation import RecommendingValidation


class SidSFTTrainer(RecommendingValidation, SFTTrainer):
    """Overrides of TRL 1.16's SFTTrainer: `compute_loss`, the batches where `batches` makes them, no decay of vectors, and, as
    `RecommendingValidation`, `evaluate`."""

    def __init__(
        self,
        *args: Any,
        batches: LengthBatches | None = None,
        vocabulary_loss_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches
        self.vocabulary_loss_weight = vocabulary_loss_weight
        if batches is not None:
            self.add_callback(batches)

    def get_train_dataloader(self) -> DataLoader:
        """Not sharded by accelerate: `LengthBatches` gives every process its own rows."""
        if self.batches is None:
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices alone: norms, biases, decays and scales are vectors."""
        matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean over answer tokens of -log of their probability, forced codes counted as the zeros they are.

        `num_items_in_batch`: answer tokens in the batches of all processes and accumulation steps.
        """
        head = OutputHead.of(self.accelerator.unwrap_model(self.model))
        total = answer_loss(model, head, inputs, self.renderer, self.trie, self.vocabulary_loss_weight)
        if num_items_in_batch is None:
            return total / (inputs["labels"] != NO_LABEL).sum()
        # the gradients of the processes are averaged, and each divides by the answer tokens of all of them
        return total * self.accelerator.num_processes / num_items_in_batch


def answer_loss(
    model: PreTrainedModel,
    head: OutputHead,
    batch: dict[str, Tensor],
    renderer: Renderer,
    trie: SidTrie,
    vocabulary_loss_weight: float = 0.0,
) -> Tensor:
    """Sum over the answers' tokens of -log p: codes of a SID by the renderer's normaliser, words over the whole vocabulary.

    vocabulary_loss_weight: the share w of a code's loss that is over the whole vocabulary: -(1 - w) log π - w log p, which is, since
    p = π · m, -log π - w log m, where m is the mass that falls on codes that exist: it asks for codes where a code belongs, and leaves
    their order to π.

    model: the wrapped model (its forward is called, so that gradients are reduced). head: its own. batch: input_ids, items and labels,
    int64 [B, T] (`sft/examples.py`).
    """
    input_ids, items, labels = batch["input_ids"], batch["items"], batch["labels"]
    assert input_ids.shape == items.shape == labels.shape, f"{tuple(input_ids.shape)}, {tuple(items.shape)}"
    if rq_transformer_of(model) is not None:
        output = model(input_ids=input_ids, answers=items)
        return sum(losses.sum() for losses in (output.answer_losses, output.item_losses) if losses is not None)
    output = model(input_ids=input_ids, output_hidden_states=True, logits_to_keep=1, use_cache=False)
    return head.call(
        lambda whole, hidden: _loss_of_states(hidden, whole, batch, renderer, trie, vocabulary_loss_weight),
        output.hidden_states[-1],
    )


def _loss_of_states(
    hidden: Tensor,
    head: OutputHead,
    batch: dict[str, Tensor],
    renderer: Renderer,
    trie: SidTrie,
    vocabulary_loss_weight: float,
) -> Tensor:
    """`answer_loss` from the last hidden states [B, T, H]; the state before a token predicts it."""
    items, labels = batch["items"], batch["labels"]
    rows, starts = (items != NO_ITEM).nonzero(as_tuple=True)
    codes_at = starts[:, None] + torch.arange(trie.n_levels, device=starts.device)  # [R, L]
    states = hidden[rows[:, None], codes_at - 1]
    answers = items[rows, starts]
    loss = -item_log_probs(states, answers, head, renderer.vocabulary, trie, renderer.normaliser).sum()
    if vocabulary_loss_weight:
        whole = head.token_log_probs(states.flatten(0, 1), labels[rows[:, None], codes_at].flatten()).sum()
        loss = (1 - vocabulary_loss_weight) * loss - vocabulary_loss_weight * whole
    words = labels != NO_LABEL
    words[rows[:, None], codes_at] = False
    rows, at = words.nonzero(as_tuple=True)
    if len(rows):
        loss = loss - head.token_log_probs(hidden[rows, at - 1], labels[rows, at]).sum()
    return loss
