"""Recommending from a catalogue that changes: what each call may return, and what stands in histories."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.beams import Beams
from sidrec.decoding.catalogue import Snapshot
from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.semantic_ids import SemanticIds

LEVELS = [4, 5, 6]
FIRST_TOKENS = (1, 5, 10)
EVERY_SID = np.random.default_rng(0).permutation(np.array(list(itertools.product(*map(range, LEVELS)))))  # [120, 3]
MAX_ITEMS = 3


def make_recommender(codes: np.ndarray) -> Recommender:
    """A tiny random Qwen3 with opinions, and a catalogue of `codes` [N, 3]."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=16,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.ndim == 2 else 1)
    sids = SemanticIds(codes, codes, [np.zeros((size, 2), np.float32) for size in LEVELS])
    vocabulary = SidVocabulary(0, FIRST_TOKENS, tuple(LEVELS))
    return Recommender.build(model, Renderer.build(sids, vocabulary, MAX_ITEMS), sids)


def from_nothing(
    recommender: Recommender, present: dict[int, np.ndarray], history: list[np.ndarray], excluded: np.ndarray
) -> Beams:
    """All items of a trie built anew of `present` (item → SID), after a history of SIDs whose ids are written here."""
    items = sorted(present)
    trie = SidTrie(torch.from_numpy(np.stack([present[item] for item in items])), LEVELS, torch.tensor(items))
    ids = [
        0,
        *(int(first + code) for sid in history[-MAX_ITEMS:] for first, code in zip(FIRST_TOKENS, sid, strict=True)),
    ]
    prompt = torch.tensor([ids])
    eligible = Eligibility(trie, 1, excluded=[excluded])
    vocabulary = recommender.renderer.vocabulary
    return beam_search(recommender.model, prompt, torch.ones_like(prompt), vocabulary, trie, 120, eligible)


def test_eight_threads_get_the_answer_of_one_moment_while_items_come_and_go():
    """Each list is, item for item, that of a catalogue built from nothing as it was at some moment of the call."""
    recommender = make_recommender(EVERY_SID[:40])
    catalogue, free = (
        recommender.catalogue,
        list(range(40, 120)),
    )  # item i has EVERY_SID[i]; it never returns once removed
    moments: list[Snapshot] = [catalogue.snapshot]  # appended to when a change is over
    there: list[set[int]] = [set(range(40))]
    calls: list[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]] = []
    finished, failures = threading.Event(), []

    def request(thread: int) -> None:
        try:
            while not finished.is_set():
                begin = len(moments) - 1
                newest = len(moments[begin].codes) - 1
                history = np.array([thread, 39 - thread, newest])  # of old items, which may be gone, and the newest
                lists = recommender.recommend([history], 10, exclude_seen=True)
                calls.append((begin, len(moments), history, lists.items[0], lists.log_probs[0]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=request, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    end, rng = time.monotonic() + 2, np.random.default_rng(1)
    while free and (time.monotonic() < end or len(moments) <= 40):  # a busy machine makes the changes slower, not fewer
        new, free = free[:2], free[2:]
        catalogue.insert(np.array(new), EVERY_SID[new])
        there.append(there[-1] | set(new))
        moments.append(catalogue.snapshot)
        old = rng.choice(sorted(there[-1]), 2, replace=False)
        catalogue.remove(old)
        there.append(there[-1] - set(old.tolist()))
        moments.append(catalogue.snapshot)
        finished.wait(0.05)
    finished.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert len({begin for begin, *_ in calls}) > 10, "the calls saw few of the changes"

    n_later = 0
    for begin, last, history, items, log_probs in calls[:: -(-len(calls) // 40)]:
        assert len(set(items)) == 10
        for moment in there[begin : last + 1]:
            lists = from_nothing(recommender, {i: EVERY_SID[i] for i in moment}, list(EVERY_SID[history]), history)
            is_same = lists.items[0, :10].tolist() == items.tolist()
            if is_same and np.allclose(lists.log_probs[0, :10].numpy(), log_probs, atol=1e-5):
                break
        else:
            pytest.fail(f"no moment of the call gives {items} after {history}")
        n_later += int(not set(history) <= there[begin])
    assert n_later > 0, "no history with a removed item"


def test_an_inserted_item_is_recommended_at_once_when_it_is_the_models_favourite():
    history = [np.array([0, 1])]
    whole = make_recommender(EVERY_SID)
    best = int(whole.recommend(history, 1, exclude_seen=True).items[0, 0])
    others = np.delete(np.arange(120), best)
    assert best > 1, "0 and 1 are the history, and keep their places"
    recommender = make_recommender(EVERY_SID[others])
    before = recommender.recommend(history, 119, exclude_seen=False)
    assert 500 not in before.items
    recommender.catalogue.insert(np.array([500]), EVERY_SID[[best]])
    for exact in (False, True):
        lists = recommender.recommend(history, 1, exclude_seen=True, exact=exact)
        assert lists.items.tolist() == [[500]]
    wanted = whole.recommend([np.array([best, 0])], 120, exclude_seen=False)
    lists = recommender.recommend([np.array([500, 0])], 120, exclude_seen=False)  # it stands in histories too
    by_item = np.append(others, np.full(500 - 119 + 1, best))
    assert by_item[lists.items[0]].tolist() == wanted.items[0].tolist()
    np.testing.assert_allclose(lists.log_probs, wanted.log_probs, atol=1e-5)


def test_a_removed_item_stays_in_histories_and_out_of_lists_whoever_takes_its_codes():
    recommender = make_recommender(EVERY_SID[:40])
    recommender.catalogue.remove(np.array([7]))
    recommender.catalogue.insert(np.array([40]), EVERY_SID[[7]])  # its semantic ID, for another item
    history = np.array([7, 3])
    present = {i: EVERY_SID[i] for i in range(40) if i != 7} | {40: EVERY_SID[7]}
    lists = recommender.recommend([history], 40, exclude_seen=True)
    wanted = from_nothing(recommender, present, [EVERY_SID[7], EVERY_SID[3]], history)
    assert lists.reachable.tolist() == [39]
    assert lists.items[0].tolist() == [*wanted.items[0, :39].tolist(), -1]
    assert 7 not in lists.items
    assert 40 in lists.items
    # one that returns under other codes is rendered with those, in later calls only
    old = recommender.catalogue.snapshot
    recommender.catalogue.insert(np.array([7]), EVERY_SID[[100]])
    assert old.codes[7].tolist() == EVERY_SID[7].tolist()
    lists = recommender.recommend([history], 41, exclude_seen=True)
    wanted = from_nothing(recommender, present | {7: EVERY_SID[100]}, [EVERY_SID[100], EVERY_SID[3]], history)
    assert lists.items[0, :39].tolist() == wanted.items[0, :39].tolist()


@pytest.mark.parametrize("exact", [False, True])
def test_k_results_are_k_allowed_items_in_the_order_of_the_whole_list(exact):
    recommender = make_recommender(EVERY_SID[:60])
    in_stock = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 59])
    recommender.catalogue.set_allow_list("in_stock", in_stock)
    recommender.catalogue.insert(np.array([60, 61]), EVERY_SID[60:62], allow_lists=("in_stock",))
    recommender.catalogue.remove(np.array([59, 4]))
    allowed = {*in_stock.tolist(), 60, 61} - {59}
    histories = [np.array([2, 30, 59]), np.array([61])]
    whole = recommender.recommend(histories, 60, exclude_seen=False)
    for k, exclude_seen in itertools.product((1, 5, 11, 15), (False, True)):
        lists = recommender.recommend(histories, k, exclude_seen, exact=exact, allow="in_stock")
        for row, history in enumerate(histories):
            theirs = allowed - set(history.tolist()) if exclude_seen else allowed
            wanted = [item for item in whole.items[row].tolist() if item in theirs]
            assert lists.reachable[row] == len(theirs)
            assert lists.items[row].tolist() == (wanted + [-1] * k)[:k]


def test_what_is_unknown_is_named():
    recommender = make_recommender(EVERY_SID[:40])
    recommender.catalogue.insert(np.array([50]), EVERY_SID[[50]])
    with pytest.raises(InputError, match=r"there is no allow-list 'films'; make it first with `set_allow_list`\."):
        recommender.recommend([np.array([1])], 5, exclude_seen=True, allow="films")
    for item in (-1, 40, 49, 51):  # 40 … 49 are below the largest index, but nothing was ever inserted there
        with pytest.raises(
            InputError, match=f"history 1 holds item {item}, which is outside the catalogue and never was in it"
        ):
            recommender.recommend([np.array([1]), np.array([50, item])], 5, exclude_seen=True)
    recommender.catalogue.remove(np.array([50]))
    assert (recommender.recommend([np.array([50])], 5, exclude_seen=True).items >= 0).all()
