"""Texts that a pretrained model writes before it is trained, and learns again beside its tasks, so that its language stays as it was
(self-synthesized rehearsal, arXiv 2403.01244)."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS = 64  # of a text
MOST_TEXTS = 64  # beyond them they are learnt several times a pass
AT_ONCE = 64
OPENINGS = ("The", "When", "In", "It", "She", "He", "They", "We", "I", "This", "There", "How", "If", "Many", "One", "A")


@torch.no_grad()
def own_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n_texts: int, n_words: int, seed: int
) -> list[list[int]]:
    """Token ids of `n_texts` texts of TOKENS tokens, each drawn from the model after one of OPENINGS.

    n_words: of the vocabulary, the first tokens, which are not SID tokens; only they are drawn. On the GPU where there is one.
    """
    torch.manual_seed(seed)
    home, was_training = model.device, model.training
    model.eval().to("cuda" if torch.cuda.is_available() else home)
    first = [tokenizer(opening, add_special_tokens=False)["input_ids"][0] for opening in OPENINGS]
    never = [*range(n_words, model.config.vocab_size), *tokenizer.all_special_ids]
    texts: list[list[int]] = []
    while len(texts) < n_texts:
        numbers = range(len(texts), min(n_texts, len(texts) + AT_ONCE))
        input_ids = torch.tensor([[first[number % len(first)]] for number in numbers], device=model.device)
        written = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=TOKENS - 1,
            max_new_tokens=TOKENS - 1,
            suppress_tokens=never,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts += written.tolist()
    model.to(home).train(was_training)
    return texts
