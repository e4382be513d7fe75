"""Training and search give a code the same logit, whatever the model does to its logits: a bias, a soft cap, a scale."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from conftest import make_sids

from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.trie import SidTrie
from sidrec.rl.trainer import SidGRPOTrainer
from sidrec.sft.examples import NO_ITEM
from sidrec.sft.trainer import SidSFTTrainer, answer_loss

LEVELS = [4, 5, 6]
VOCABULARY = SidVocabulary(0, (1, 5, 10), (4, 5, 6))
SMALL = {
    "vocab_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
FAMILIES = {
    "bias": lambda tied: tf.PhiConfig(**SMALL, partial_rotary_factor=0.5, tie_word_embeddings=tied),
    "soft cap": lambda tied: tf.Gemma2Config(
        **SMALL, head_dim=16, final_logit_softcapping=1.5, attn_logit_softcapping=2.0, tie_word_embeddings=tied
    ),
    "scale": lambda tied: tf.CohereConfig(**SMALL, logit_scale=0.25, tie_word_embeddings=tied),
}


def make_model(family: str, tied: bool) -> tf.PreTrainedModel:
    torch.manual_seed(1)
    model = tf.AutoModelForCausalLM.from_config(FAMILIES[family](tied), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
            if name.endswith("bias"):
                parameter.normal_()
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_trainers_losses_are_the_searchs_log_probs(family, tied):
    """Every item after one history: SFT's loss, RL's log-probabilities and the search's scores, to 1e-5."""
    model, sids = make_model(family, tied), make_sids(30, LEVELS)
    trie = SidTrie(torch.from_numpy(sids.codes), LEVELS)
    tokens = torch.from_numpy(sids.codes).long() + torch.tensor(VOCABULARY.first_tokens)
    prompt = torch.cat([torch.tensor([VOCABULARY.start_token]), tokens[[3, 11]].flatten()])[None]
    beams = beam_search(model, prompt, torch.ones_like(prompt), VOCABULARY, trie, 30)
    searched = torch.empty(30).scatter_(0, beams.items[0], beams.log_probs[0])

    targets = torch.arange(30)
    input_ids = torch.cat([prompt.expand(30, -1), tokens], dim=1)
    items = torch.full_like(input_ids, NO_ITEM)
    items[:, prompt.shape[1]] = targets
    renderer = SimpleNamespace(vocabulary=VOCABULARY, normaliser="children")
    batch = {"input_ids": input_ids, "items": items, "labels": torch.where(torch.arange(10) < 7, -100, input_ids)}
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped, autocast=nullcontext, num_processes=1),
        model=model, renderer=renderer, trie=trie, vocabulary_loss_weight=0.0,
    )  # fmt: skip
    with torch.no_grad():
        for row in range(30):
            inputs = {name: values[row : row + 1] for name, values in batch.items()}
            loss = SidSFTTrainer.compute_loss(trainer, model, inputs, num_items_in_batch=1)
            assert loss.item() == pytest.approx(-searched[row].item(), abs=1e-5)
        rl_trainer = object.__new__(SidGRPOTrainer)  # without TRL's part
        rl_trainer.accelerator, rl_trainer.renderer, rl_trainer.trie = trainer.accelerator, renderer, trie
        by_code, _, _ = rl_trainer._get_per_token_logps_and_entropies(model, input_ids, torch.ones_like(input_ids), 3)
        torch.testing.assert_close(by_code.sum(1), searched, atol=1e-5, rtol=0)
        mixed = answer_loss(model, OutputHead.of(model), batch, renderer, trie, vocabulary_loss_weight=0.3)
        of_words = model(input_ids[:, :-1]).logits.float().log_softmax(-1).gather(2, input_ids[:, 1:, None])[:, -3:]
        torch.testing.assert_close(mixed, -0.7 * searched.sum() - 0.3 * of_words.sum(), atol=1e-3, rtol=1e-5)
        rows_alone = OutputHead(model.get_output_embeddings().weight)
        without = answer_loss(model, rows_alone, batch, renderer, trie)
    assert (without + searched.sum()).abs() > 1, "the head's rows alone give the same: nothing is proved"
