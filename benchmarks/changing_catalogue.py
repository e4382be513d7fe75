"""What seen items cost a search, what an insertion costs, and requests in eight threads while items come and go."""

from __future__ import annotations

import statistics
import threading
import time

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.harness import cpu_seconds
from benchmarks.masking_step import VOCABULARY
from benchmarks.random_catalogues import small_qwen3, uniform_codes
from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.catalogue import LiveCatalogue
from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.trie import SidTrie

SIZES = [1024] * 3
SIDS = SidVocabulary(0, tuple(VOCABULARY + 1024 * level for level in range(3)), tuple(SIZES))
N_THREADS = 8
BEAMS = 20


def measure_changes(n_items: int, seconds: float, repeats: int, seed: int) -> dict[str, float]:
    """Everything of this file, at `n_items` items; requests run for `seconds`."""
    n_more = n_items // 100
    codes = uniform_codes(n_items + 2 * n_more, SIZES, seed)
    trie = SidTrie(codes[:n_items], SIZES)
    model = small_qwen3(VOCABULARY + sum(SIZES), seed)
    return {
        "seen_share": round(seen_share(model, trie, repeats, seed), 3),
        "insert_seconds": round(insert_seconds(trie, codes[n_items : n_items + n_more].numpy(), repeats), 3),
    } | requests_under_change(model, LiveCatalogue(trie), codes[n_items:].numpy(), seconds)


def seen_share(model: PreTrainedModel, trie: SidTrie, repeats: int, seed: int) -> float:
    """How much longer 8 requests take when each excludes 200 items, as a share; the two are timed in turn."""
    rng = np.random.default_rng(seed)
    prompts = torch.from_numpy(rng.integers(0, VOCABULARY, (8, 128)))
    mask = torch.ones_like(prompts)
    seen = list(rng.integers(0, trie.n_items, (8, 200)))

    def search(excluded: list[np.ndarray] | None) -> Tensor:
        eligible = None if excluded is None else Eligibility(trie, 8, excluded)
        return beam_search(model, prompts, mask, SIDS, trie, BEAMS, eligible).items

    best = search(None)
    second_best = search(list(best.numpy()))
    assert not bool((second_best[:, :, None] == best[:, None, :]).any()), "seen items came back"
    pairs = [(cpu_seconds(lambda: search(None), 1), cpu_seconds(lambda: search(seen), 1)) for _ in range(3 * repeats)]
    return statistics.median(with_seen for _, with_seen in pairs) / statistics.median(free for free, _ in pairs) - 1


def insert_seconds(trie: SidTrie, codes: np.ndarray, repeats: int) -> float:
    """Median CPU seconds of adding `codes` (int [M, L]) to a catalogue and swapping the snapshot."""
    new = np.arange(trie.n_items, trie.n_items + len(codes))
    return cpu_seconds(lambda: LiveCatalogue(trie).insert(new, codes), repeats)


def requests_under_change(
    model: PreTrainedModel, catalogue: LiveCatalogue, codes: np.ndarray, seconds: float
) -> dict[str, float]:
    """Eight threads of requests; meanwhile new items come in hundreds and as many old ones, never to return, go.

    codes: those of the items to come. A request is wrong when it gives an item twice, fewer than it should, one whose removal was
    over before it began, or one that was not there; any exception ends the run.
    """
    first_new = catalogue.snapshot.trie.n_slots
    removed: list[int] = []  # appended to when a removal is over
    failures: list[Exception] = []
    finished, n_requests, shown = threading.Event(), [0] * N_THREADS, _Shown()

    def request(thread: int) -> None:
        prompt = torch.arange(10 * thread, 10 * thread + 10)[None]
        try:
            while not finished.is_set():
                gone, most = set(removed), first_new + len(codes)
                snapshot = catalogue.snapshot
                beams = beam_search(model, prompt, torch.ones_like(prompt), SIDS, snapshot.trie, BEAMS)
                answer = beams.items[0].tolist()
                assert len(set(answer)) == BEAMS, "an item twice, or too few"
                assert not gone & set(answer), "a removed item"
                assert all(0 <= item < most for item in answer), "an unknown item"
                n_requests[thread] += 1
                shown.put(answer[0])
        except Exception as error:
            failures.append(error)
            finished.set()

    threads = [threading.Thread(target=request, args=(thread,)) for thread in range(N_THREADS)]
    for thread in threads:
        thread.start()
    end, n_changes = time.monotonic() + seconds, 0
    while time.monotonic() < end and not finished.is_set():
        begin = 100 * n_changes
        new = np.arange(first_new + begin, first_new + begin + 100)
        if len(codes) >= begin + 100:
            catalogue.insert(new, codes[begin : begin + 100])
        old = np.unique([item for item in shown.take() if item not in removed])
        catalogue.remove(old)
        removed.extend(old.tolist())
        n_changes += 1
        finished.wait(0.1)
    finished.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return {"requests": sum(n_requests), "changes": n_changes, "removed": len(removed)}


class _Shown:
    """The best items of the latest answers: the ones whose removal a request would notice."""

    def __init__(self) -> None:
        self._items: list[int] = []
        self._lock = threading.Lock()

    def put(self, item: int) -> None:
        with self._lock:
            self._items.append(item)

    def take(self) -> list[int]:
        """All since the last time."""
        with self._lock:
            items, self._items = self._items, []
        return items
