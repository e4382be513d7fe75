"""Clusters of equal size: one price per code, and the repair that makes sizes exact."""

from __future__ import annotations

import torch

from sidrec.tokenizer.kmeans.distributed import summed
from sidrec.tokenizer.kmeans.nearest import BLOCK
from sidrec.tokenizer.kmeans.training_rows import TrainingRows

PRICE_ROUNDS = 25  # steps of dual ascent per Lloyd iteration; prices go on from the iteration before
LOAD_TOLERANCE = 0.02  # stop when the fullest cluster is at most 2 % over its share


def balancing_prices(distances: torch.Tensor, prices: torch.Tensor, slack: float = 1.0) -> torch.Tensor:
    """One price per code, such that argmin_k (distance + price) gives no code much more than slack · N/K rows.

    Dual ascent on the transport problem min sum ||x_i - c_a(i)||^2 with at most slack · N/K rows per code, whose optimum has exactly
    this form: raise the price of a code that has too many rows, lower it where there are fewer, with one step size
    per price that grows while the sign of its error stays and halves when it turns (as in Rprop). With slack above 1 prices are at
    least 0, and a code that is not full costs nothing. distances: [n, K], this process's rows (any constant per row may be missing);
    prices: [K], where to go on from. Returns the prices [K] with the highest dual value that was seen, mean_i min_k (d_ik + p_k) - slack
    mean_k p_k: many equal rows cannot be parted by prices, and loads alone would then be lowered at any cost.
    """
    n, K = distances.shape
    assert prices.shape == (K,)
    assert slack >= 1
    if K == 1:
        return prices
    two_nearest = distances.topk(2, largest=False).values
    gaps = summed(torch.stack([(two_nearest[:, 1] - two_nearest[:, 0]).double().sum(), torch.tensor(n).double()]))
    scale, N = float(gaps[0] / gaps[1]), float(gaps[1])
    steps, previous = torch.full((K,), scale), torch.zeros(K)
    best_value, best_prices = -float("inf"), prices
    for _ in range(PRICE_ROUNDS):
        counts, least = loads(distances, prices)
        excess = counts * (K / (slack * N)) - 1  # 0: exactly the most it may have
        value = least / N - slack * float(prices.double().mean())
        if value > best_value:
            best_value, best_prices = value, prices
        free = (excess < -LOAD_TOLERANCE) & (prices > 0)  # room left, yet at a price
        if float(excess.max()) < LOAD_TOLERANCE and (slack == 1 or not free.any()):
            best_prices = prices
            break
        turned = excess * previous < 0
        steps = torch.where(turned, steps * 0.5, steps * 1.25).clamp(scale * 1e-3, scale * 50)
        prices = prices + steps * excess.clamp(-1, 1)
        if slack > 1:
            prices = prices.clamp_min(0)
        previous = excess
    return best_prices


def loads(distances: torch.Tensor, prices: torch.Tensor) -> tuple[torch.Tensor, float]:
    """How many rows of all processes have each code as argmin_k (distance + price), the lowest index among equals: float32 [K].

    And the sum over these rows of the least distance + price.
    """
    n, K = distances.shape
    counts, total = torch.zeros(K), torch.zeros(1, dtype=torch.float64)
    priced, least = torch.empty(min(n, BLOCK), K), torch.empty(min(n, BLOCK), K)
    for block in distances.split(BLOCK):
        scores = torch.add(block, prices, out=priced[: len(block)])
        lowest = scores.amin(1, keepdim=True)
        hits = torch.le(scores, lowest, out=least[: len(block)]).sum(0)
        if float(hits.sum()) > len(block):  # equal scores
            hits = torch.bincount(scores.argmin(1), minlength=K).float()
        counts += hits
        total += lowest.sum(dtype=torch.float64)
    return summed(counts), float(summed(total))


def codes_of_equal_size(rows: TrainingRows, priced: torch.Tensor) -> torch.Tensor:
    """Codes such that every code has N // K rows, or one more: int64 [n], this process's.

    priced: [n, K], distance + price, of prices that nearly balance the loads; these decide which N mod K codes have one row more (the
    fullest). Then rows leave the codes that have too many for codes that have room, in the order of what it costs.
    """
    everything = rows.whole(priced)  # [N, K] on every process: all make the same repair
    N, K = everything.shape
    codes = everything.argmin(1)
    counts = torch.bincount(codes, minlength=K)
    room = torch.full((K,), N // K) - counts
    room[counts.argsort(descending=True, stable=True)[: N % K]] += 1
    while bool((room < 0).any()):
        movable = (room[codes] < 0).nonzero().flatten()
        old_codes, scores = codes[movable], everything[movable]
        cost, target = (scores + torch.where(room > 0, 0.0, float("inf"))).min(1)
        order = (cost - scores.gather(1, old_codes[:, None])[:, 0]).argsort(stable=True)
        left, moves = room.tolist(), []
        for row, old, new in zip(
            movable[order].tolist(), old_codes[order].tolist(), target[order].tolist(), strict=True
        ):
            if left[old] < 0 < left[new]:
                moves.append((row, new))
                left[old] += 1
                left[new] -= 1
        moved, to = torch.tensor(moves).T
        codes[moved] = to
        room = torch.tensor(left)
    return codes[rows.positions]
