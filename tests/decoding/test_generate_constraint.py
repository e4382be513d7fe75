"""The drop-ins for `generate()` against scoring every item, and against the usual way of constraining it and its faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_sids
from transformers import GenerationConfig, LogitsProcessor, Qwen3Config, Qwen3ForCausalLM

from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.generate_constraint import SidLogitsProcessor, beam_settings, items_of, prefix_allowed_tokens
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.trie import SidTrie

EOS, NEWLINE, FIRST = 0, 1, (30, 34, 39)
LEVELS = [4, 5, 6]
VOCABULARY = SidVocabulary(2, FIRST, tuple(LEVELS))
PROMPTS = torch.tensor(
    [[5, 31, 36, 44, 9, 7], [0, 0, 30, 34, 39, 30], [0, 3, 3, 9, 8, 40]]
)  # left-padded; some end in an SID
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
HEADER = [10, 11, 12]  # the last tokens of the usual prompt, "### Response:\n"


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=16, initializer_range=0.3,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def trie_of(codes: np.ndarray) -> SidTrie:
    return SidTrie(torch.from_numpy(codes), LEVELS)


@torch.no_grad()
def every_item(model, trie: SidTrie, codes: np.ndarray) -> torch.Tensor:
    """float32 [B, N]: log-probability over the whole vocabulary of every item, one run an item."""
    scores = torch.zeros(len(PROMPTS), len(codes))
    for row, (prompt, mask) in enumerate(zip(PROMPTS, MASK, strict=True)):
        prompt = prompt[mask.bool()]
        for item, tokens in enumerate(torch.from_numpy(codes) + torch.tensor(FIRST)):
            logits = model(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1]
            scores[row, item] = logits.log_softmax(-1).gather(1, tokens[:, None]).sum()
    return scores


def generate(model, trie: SidTrie, k: int, eligibility: Eligibility | None = None, as_function: bool = False):
    length = PROMPTS.shape[1]
    constraint = (
        {"prefix_allowed_tokens_fn": prefix_allowed_tokens(trie, VOCABULARY, length, EOS)}
        if as_function
        else {"logits_processor": [SidLogitsProcessor(trie, VOCABULARY, length, EOS, eligibility)]}
    )
    output = model.generate(PROMPTS, attention_mask=MASK, **constraint, **beam_settings(k, 3, EOS))
    return items_of(output.sequences, output.sequences_scores, trie, VOCABULARY, length, len(PROMPTS))


@pytest.mark.parametrize("as_function", [False, True])
def test_a_wide_beam_gives_the_true_order_and_log_probabilities(model, as_function):
    sids = make_sids(40, LEVELS)
    exact = every_item(model, trie_of(sids.codes), sids.codes)
    items, log_probs = generate(model, trie_of(sids.codes), 40, as_function=as_function)
    wanted = exact.sort(dim=1, descending=True)
    assert torch.equal(items, wanted.indices)
    torch.testing.assert_close(log_probs, wanted.values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("n_items", [1, 2, 6])
def test_fewer_items_than_beams_give_each_item_once(model, n_items, as_function):
    sids = make_sids(n_items, LEVELS)
    items, log_probs = generate(model, trie_of(sids.codes), 10, as_function=as_function)
    for row, wanted in enumerate(every_item(model, trie_of(sids.codes), sids.codes)):
        assert items[row, :n_items].tolist() == wanted.argsort(descending=True).tolist()
        assert (items[row, n_items:] == -1).all()
        assert torch.isneginf(log_probs[row, n_items:]).all()


def test_only_eligible_items_even_when_one_or_none_is_left(model):
    sids = make_sids(40, LEVELS)
    trie = trie_of(sids.codes)
    excluded = [np.delete(np.arange(40), 17), np.arange(40), np.arange(0, 40, 2)]
    items, _ = generate(model, trie, 40, Eligibility(trie, 3, excluded))
    assert items[0].tolist() == [17] + [-1] * 39
    assert items[1].tolist() == [-1] * 40
    exact = every_item(model, trie, sids.codes)[2]
    exact[::2] = -torch.inf
    assert items[2, :20].tolist() == exact.argsort(descending=True)[:20].tolist()
    assert (items[2, 20:] == -1).all()


def test_the_same_items_as_the_search_with_the_full_normaliser(model):
    trie = trie_of(make_sids(40, LEVELS).codes)
    items, log_probs = generate(model, trie, 8)
    beams = beam_search(model, PROMPTS, MASK, VOCABULARY, trie, 8, normaliser="full")
    assert torch.equal(items, beams.items)
    torch.testing.assert_close(log_probs, beams.log_probs, atol=1e-4, rtol=0)


def test_no_row_is_ever_without_a_token():
    trie = trie_of(make_sids(7, LEVELS).codes)
    processor = SidLogitsProcessor(trie, VOCABULARY, 2, EOS)
    every_tail = torch.cartesian_prod(torch.arange(50), torch.arange(50))
    for length in range(6):
        rows = torch.full((len(every_tail), 2 + length), 9)
        rows[:, 2:4] = every_tail[:, :length] if length < 2 else every_tail
        allowed = processor(rows, torch.zeros(len(rows), 50))
        assert (allowed > -torch.inf).any(1).all()
    with pytest.raises(AssertionError, match="prompts of 2 tokens were announced"):
        processor(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 50))


# The usual way: a dictionary from joined token ids to the next tokens, the number of steps counted in the object, -1e6 for the rest.


class OldProcessor(LogitsProcessor):
    def __init__(self, codes: np.ndarray, num_beams: int) -> None:
        self.allowed: dict[str, list[int]] = {}
        for row in codes:
            sid = [*HEADER, *(row + np.array(FIRST)).tolist(), NEWLINE, EOS]
            for step in range(5):
                key = sid[:3] if step == 0 else sid[3 : 3 + step]
                following = self.allowed.setdefault("-".join(map(str, key)), [])
                if sid[3 + step] not in following:
                    following.append(sid[3 + step])
        self.num_beams, self.count = num_beams, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mask = torch.full_like(scores, -1e6)
        for request, beams in enumerate(input_ids.view(-1, self.num_beams, input_ids.shape[-1])):
            for beam, row in enumerate(beams):
                key = row[-3:] if self.count == 0 else row[-self.count :]
                following = self.allowed.get("-".join(map(str, key.tolist())))
                if following is not None:
                    mask[request * self.num_beams + beam, following] = 0
        self.count += 1
        return scores.log_softmax(-1) + mask


def old_generate(model, processor: OldProcessor, prompt: list[int], k: int, **settings):
    config = GenerationConfig(
        num_beams=k, num_return_sequences=k, max_new_tokens=5, eos_token_id=EOS, pad_token_id=EOS, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True, **settings,
    )  # fmt: skip
    return model.generate(torch.tensor([prompt]), generation_config=config, logits_processor=[processor])


def new_generate(model, trie: SidTrie, prompt: list[int], k: int, processor: SidLogitsProcessor | None = None):
    processor = processor or SidLogitsProcessor(trie, VOCABULARY, len(prompt), EOS)
    output = model.generate(torch.tensor([prompt]), logits_processor=[processor], **beam_settings(k, 3, EOS))
    return items_of(output.sequences, output.sequences_scores, trie, VOCABULARY, len(prompt), 1)[0][0].tolist()


def valid(sequences: torch.Tensor, prompt_length: int, codes: np.ndarray) -> int:
    rows = {tuple(row) for row in (codes + np.array(FIRST)).tolist()}
    return sum(tuple(row[prompt_length : prompt_length + 3].tolist()) in rows for row in sequences)


def items_by_the_old_way(model, codes: np.ndarray, prompt: list[int], k: int, **settings) -> list[int]:
    rows = old_generate(model, OldProcessor(codes, k), prompt, k, **settings).sequences[
        :, len(prompt) : len(prompt) + 3
    ]
    return trie_of(codes).item_of(rows - torch.tensor(FIRST)).tolist()


def test_the_old_way_does_work_on_the_prompt_it_was_made_for(model):
    codes = make_sids(40, LEVELS).codes
    items = items_by_the_old_way(model, codes, [5, *HEADER], 8, do_sample=False)
    assert set(items) == set(new_generate(model, trie_of(codes), [5, *HEADER], 8))


def test_fault_1_a_prompt_that_ends_one_token_later(model):
    codes = make_sids(40, LEVELS).codes
    n_valid = 0
    for tail in range(13, 23):
        prompt = [5, *HEADER, tail]
        n_valid += valid(old_generate(model, OldProcessor(codes, 2), prompt, 2, do_sample=False).sequences, 5, codes)
        assert len(set(new_generate(model, trie_of(codes), prompt, 2)) - {-1}) == 2
    assert n_valid < 10  # of 20


def test_fault_2_an_object_used_twice_and_with_another_number_of_beams(model):
    codes = make_sids(40, LEVELS).codes
    old = OldProcessor(codes, 8)
    assert valid(old_generate(model, old, [5, *HEADER], 8, do_sample=False).sequences, 4, codes) == 8
    assert valid(old_generate(model, old, [5, *HEADER], 8, do_sample=False).sequences, 4, codes) < 8
    with pytest.raises(RuntimeError):
        old_generate(model, old, [5, *HEADER], 5, do_sample=False)
    trie = trie_of(codes)
    new = SidLogitsProcessor(trie, VOCABULARY, 4, EOS)
    first = new_generate(model, trie, [5, *HEADER], 8, new)
    assert new_generate(model, trie, [5, *HEADER], 8, new) == first
    assert len(set(new_generate(model, trie, [5, *HEADER], 5, new)) - {-1}) == 5


def test_fault_3_more_beams_than_items(model):
    codes = make_sids(6, LEVELS).codes
    old = old_generate(model, OldProcessor(codes, 10), [5, *HEADER], 10, do_sample=False)
    n_distinct = len({tuple(row) for row in old.sequences[:, 4:7].tolist()})
    assert len(old.sequences) == 10 > n_distinct or valid(old.sequences, 4, codes) < 10  # repeated items, or no items
    assert sorted(new_generate(model, trie_of(codes), [5, *HEADER], 10)) == [-1] * 4 + list(range(6))


def test_fault_4_two_forced_steps_after_the_last_code(model):
    codes = make_sids(40, LEVELS).codes
    steps = []
    handle = model.register_forward_hook(lambda *_: steps.append(1))
    old_generate(model, OldProcessor(codes, 8), [5, *HEADER], 8, do_sample=False)
    n_old = len(steps)
    new_generate(model, trie_of(codes), [5, *HEADER], 8)
    handle.remove()
    n_new = len(steps) - n_old
    assert n_new == 3
    assert n_old == 5
    # and the price of the forced line break decides the order
    exact = new_generate(model, trie_of(codes), [5, *HEADER], 8)
    assert items_by_the_old_way(model, codes, [5, *HEADER], 8, do_sample=False) != exact


def test_fault_5_sampling_inherited_from_the_checkpoint(model):
    codes = make_sids(40, LEVELS).codes
    truth = new_generate(model, trie_of(codes), [5, *HEADER], 8)
    plain = model.generation_config
    try:
        model.generation_config = GenerationConfig(
            do_sample=True, top_k=2, top_p=0.8, temperature=0.7, repetition_penalty=1.3
        )
        torch.manual_seed(0)
        old = items_by_the_old_way(model, codes, [5, *HEADER], 8)
        new = new_generate(model, trie_of(codes), [5, *HEADER], 8)
    finally:
        model.generation_config = plain
    assert new == truth
    assert set(old) != set(truth)


def test_fault_6_two_items_of_one_sid():
    codes = make_sids(40, LEVELS).codes.copy()
    codes[7] = codes[3]
    item_of_sid = {tuple(row): item for item, row in enumerate(codes.tolist())}  # the old way back to items
    assert 3 not in item_of_sid.values()
    with pytest.raises(AssertionError, match="share a semantic ID"):
        trie_of(codes)
