"""What a pretrained model keeps of its English: its perplexity on a few plain passages, before and after training."""

from __future__ import annotations

import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGLISH_FILE = "english.json"  # in a model's folder
MOST_LOST = 0.02  # of perplexity; beyond it the summary says what to change
PASSAGES = (
    "The first train left before sunrise, half empty, and the conductor walked through the cars with a cup of coffee in his hand. At the "
    "second station a woman with two large suitcases got in. She asked whether the seat by the window was free, put her bags on the rack, "
    "and fell asleep before the train had left the town.",
    "Bees find their way back to the hive by the position of the sun, and they tell each other where food is by dancing. The longer the "
    "dance, the farther the flowers. On cloudy days they use the pattern of polarised light in the sky, which people cannot see without "
    "an instrument.",
    "When you repair a bicycle tyre, take the wheel out of the frame and press the rubber away from the rim with your thumbs. Pull out the "
    "inner tube, pump it up a little, and hold it under water. Where bubbles rise there is a hole. Dry the place, roughen it, and glue a "
    "patch on it.",
    "The city council decided on Tuesday that the old market hall will stay open. Traders had feared that the building would be sold to a "
    "hotel company. Instead the roof will be repaired over the next two years, and rents will not rise during that time, the mayor told "
    "reporters after the meeting.",
    "A good experiment changes one thing at a time. If both the temperature and the pressure are different, nobody can say which of them "
    "made the reaction faster. That is why scientists write down all conditions, repeat every measurement, and report how far the results "
    "lie apart.",
    "He had played the violin since he was six, and he still practised scales every morning. Neighbours set their clocks by it. In the "
    "evening he played what he liked: slow dances from the village where he was born, and songs that his mother had sung in the kitchen.",
)


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n_tokens: int | None = None) -> float:
    """exp of the mean over the passages' tokens, each passage's first left out, of -log p. n_tokens: of the vocabulary, the first so many,
    to which p is normalised; None: all."""
    was_training = model.training
    model.eval()
    loss, count = 0.0, 0
    for passage in PASSAGES:
        ids = tokenizer(passage, return_tensors="pt")["input_ids"].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1, :n_tokens].float()
        loss += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    model.train(was_training)
    return math.exp(loss / count)


def english_in_words(before: float, after: float) -> str:
    """One sentence for the summary, with what to change where much is lost."""
    sentence = f"English: perplexity {before:.2f} before, {after:.2f} after ({after / before - 1:+.1%})"
    if after <= (1 + MOST_LOST) * before:
        return sentence
    return f"{sentence}; where words matter, set --train_weights lora, raise --own_text, or lower learning_rate"
