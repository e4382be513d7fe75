"""TRL's SFTTrainer with the loss of the one policy, and a validation that recommends instead of measuring a loss."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTTrainer

from decoding.output_head import OutputHead
from decoding.policy import SidVocabulary, item_log_probs
from decoding.trie import SidTrie
from sft.sequences import NO_ITEM
from sft.validation import RecommendingValidation


class SidSFTTrainer(RecommendingValidation, SFTTrainer):
    """Overrides two methods of TRL 1.16's SFTTrainer: `compute_loss` and, as `RecommendingValidation`, `evaluate`."""

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean over codes of -log π, forced codes counted as the zeros they are.

        `num_items_in_batch`: codes with a loss in the batches of all processes and accumulation steps.
        """
        head = OutputHead.of(self.accelerator.unwrap_model(self.model))
        total = sequence_loss(model, head, inputs["input_ids"], inputs["items"], self.renderer.vocabulary, self.trie)
        if num_items_in_batch is None:
            return total / (inputs["items"] != NO_ITEM).sum() / self.trie.n_levels
        # the gradients of the processes are averaged, and each divides by the codes of all of them
        return total * self.accelerator.num_processes / num_items_in_batch


def sequence_loss(
    model: PreTrainedModel,
    head: OutputHead,
    input_ids: Tensor,
    items: Tensor,
    vocabulary: SidVocabulary,
    trie: SidTrie,
) -> Tensor:
    """Sum of -log π over the codes of all `items` that have a loss.

    model: the wrapped model (its forward is called, so that gradients are reduced). head: its own. input_ids: int64
    [B, 1 + J·L]. items: int64 [B, J], NO_ITEM where there is no loss.
    """
    n_rows, n_items = items.shape
    assert input_ids.shape == (n_rows, 1 + n_items * trie.n_levels), (
        f"{tuple(input_ids.shape)} for {tuple(items.shape)} items"
    )
    output = model(input_ids=input_ids, output_hidden_states=True, logits_to_keep=1, use_cache=False)
    # the hidden state before a code's token predicts it: states 0 … L-1 predict the first item's codes
    hidden = output.hidden_states[-1][:, :-1].unflatten(1, (n_items, trie.n_levels))  # [B, J, L, H]
    with_loss = items != NO_ITEM
    return -item_log_probs(hidden[with_loss], items[with_loss], head, vocabulary, trie).sum()
