"""The training loop of every trained quantizer: batches, learning rate, measurements, checkpoints, the state to keep.

AdamW; the learning rate rises over the first steps and falls to 0 along a cosine; the gradient's norm is limited. Before the first step,
every `evaluate_every` steps and at the end the model is measured on all items, with hard codes, and a checkpoint is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.tokenizer.autoencoders.checkpoint import TrainingState
from sidrec.tokenizer.autoencoders.settings import TrainingSettings
from sidrec.tokenizer.embeddings.item_vectors import Rows

MEASURED_ROWS = 4096  # rows measured at once
CHECKPOINT = Path("checkpoints") / "last.pt"
ORDER, REVIVAL, DROPOUT = 0, 1, 2  # what random numbers are drawn for


class Coded(Protocol):
    """What a model's forward pass says about codes: int64 [n, L]."""

    codes: Tensor


class Trainable(Protocol):
    """What the loop asks of a model, an nn.Module.

    `model(x, progress)`, with x [n, D] and the share of steps that are done, returns scalars by name, `loss` (which is lowered) and
    `reconstruction` among them, and the codes; in eval() mode it codes as the finished quantizer will. `after_step(coded, step, rng)`
    does what no gradient does, and returns how many dead codes it revived.
    """

    def __call__(self, x: Tensor, progress: float = ...) -> tuple[dict[str, Tensor], Any]: ...

    def after_step(self, quantized: Any, step: int, rng: np.random.Generator) -> int: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def train(self, mode: bool = ...) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class Batches:
    """Which rows each step trains on: all rows in a new order on every pass; the last rows that fill no batch wait for the next pass.

    A function of the seed and the step alone, so that a resumed run draws what an undisturbed one draws.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int) -> None:
        self.n_rows, self.size, self.seed = n_rows, min(batch_size, n_rows), seed
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def rows(self, step: int) -> np.ndarray:
        """Row numbers, ascending, as files are read fastest. step: from 1."""
        number, place = divmod(step - 1, self.n_rows // self.size)
        if number != self._pass:
            self._pass, self._order = number, np.random.default_rng([self.seed, ORDER, number]).permutation(self.n_rows)
        return np.sort(self._order[place * self.size : (place + 1) * self.size])


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """The rate of a step (from 1): a line up to the highest over the warm-up, then half a cosine, which would be 0 after the last step."""
    done, warmup = step - 1, settings.warmup_steps
    if done < warmup:
        return settings.learning_rate * (done + 1) / warmup
    share = (done - warmup) / (settings.training_steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def measure(model: Trainable, vectors: Rows) -> dict[str, Any]:
    """The model's scalars as means over all items; `collision`, 1 - distinct codes / N; per level `perplexity` and `codes_used`."""
    model.train(False)
    totals: dict[str, float] = {}
    pieces = []
    for start in range(0, len(vectors), MEASURED_ROWS):
        x = torch.tensor(vectors[start : start + MEASURED_ROWS], dtype=torch.float32)
        scalars, coded = model(x, 1.0)
        for name, scalar in scalars.items():
            totals[name] = totals.get(name, 0.0) + float(scalar) * len(x) / len(vectors)
        pieces.append(coded.codes.numpy())
    model.train(True)
    codes = np.concatenate(pieces)
    collision = 1 - len(np.unique(codes, axis=0)) / len(codes)
    used = [len(np.unique(level)) for level in codes.T]
    return totals | {"collision": collision, "perplexity": [perplexity(level) for level in codes.T], "codes_used": used}


def perplexity(codes: np.ndarray) -> float:
    """e^entropy of how often each code occurs: the number of codes in effect. codes: int [N]."""
    shares = np.bincount(codes) / len(codes)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


class Training:
    """The training of one model on rows [N, D]: the same bytes for the same seed, killed and resumed or not.

    config: what decides the result; a checkpoint of another one is refused. folder: where checkpoints are written, None for none.
    """

    def __init__(
        self,
        model: Trainable,
        vectors: Rows,
        settings: TrainingSettings,
        seed: int,
        config: dict[str, Any],
        folder: Path | None = None,
        screen: Screen | None = None,
    ) -> None:
        self.model, self.vectors, self.settings, self.seed = model, vectors, settings, seed
        self.config, self.path = config, folder / CHECKPOINT if folder else None
        self.batches = Batches(len(vectors), settings.batch_size, seed)
        self.weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, settings.learning_rate, weight_decay=settings.weight_decay)
        self.state = TrainingState()
        self.screen = screen or Screen("training", quiet=True)

    def run(self, start: Callable[[], None]) -> dict[str, Any]:
        """Train, and leave the model in the state that `settings.keep` names.

        start: called before the first step, but not when a checkpoint is gone on from. Returns the training curve: `rows`, one a
        measurement, and `kept_step`. Raises InputError when the loss is not finite, naming the step and the last good checkpoint.
        """
        saved = TrainingState.load(self.path, self.config) if self.path else None
        if saved is None:
            start()
            self._measure({"learning_rate": 0.0, "gradient_norm": 0.0, "resets": 0})
        else:
            self._go_on_from(saved)
        self._run_steps()
        if self.settings.keep != "last":
            self.model.load_state_dict(self.state.best)
        return {"rows": self.state.rows, "kept_step": self.state.best_step}

    def _go_on_from(self, saved: TrainingState) -> None:
        try:
            self.model.load_state_dict(saved.model)
            self.optimizer.load_state_dict(saved.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.path} does not fit the model ({reason}); delete it to train anew.") from error
        self.state = saved

    def _run_steps(self) -> None:
        steps, every = self.settings.training_steps, self.settings.evaluate_every
        norms: list[float] = []
        resets = 0
        with self.screen.bar("training", steps, "steps", self.state.step) as bar:
            while self.state.step < steps:
                loss, norm, revived = self._step(self.state.step + 1)
                self.state.step += 1
                norms.append(norm)
                resets += revived
                bar.advance(1, f"loss {loss:.3g}")
                if self.state.step % every == 0 or self.state.step == steps:
                    rate = learning_rate(self.state.step, self.settings)
                    mean_norm = sum(norms) / len(norms)
                    self._measure({"learning_rate": rate, "gradient_norm": mean_norm, "resets": resets})
                    norms, resets = [], 0

    def _step(self, step: int) -> tuple[float, float, int]:
        """One step of the optimizer. Returns the loss, the gradient's norm, and how many dead codes were revived."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.settings)
        rows = self.vectors[self.batches.rows(step)]
        x = torch.tensor(rows, dtype=torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([self.seed, DROPOUT, step]).integers(2**63)))
            scalars, coded = self.model(x, (step - 1) / max(self.settings.training_steps - 1, 1))
        self.optimizer.zero_grad()
        scalars["loss"].backward()
        norm = float(nn.utils.clip_grad_norm_(self.weights, self.settings.gradient_clip))
        loss = float(scalars["loss"].detach())
        self._refuse_infinite({"loss": loss, "gradient's norm": norm}, step)
        self.optimizer.step()
        revived = self.model.after_step(coded, step, np.random.default_rng([self.seed, REVIVAL, step]))
        return loss, norm, revived

    def _measure(self, of_steps: dict[str, Any]) -> None:
        """Add a row to the curve, keep the state if it is the best, write a checkpoint."""
        state = self.state
        measured = measure(self.model, self.vectors)
        self._refuse_infinite({"loss": measured["loss"]}, state.step)
        state.rows.append({"step": state.step} | of_steps | measured)
        weights = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        best = min(state.rows, key=_order(self.settings.keep))  # the first one among equals
        if best["step"] == state.step:
            state.best_step = state.step
            state.best = weights if self.settings.keep != "last" else {}
        if self.path:
            state.model, state.optimizer = weights, self.optimizer.state_dict()
            state.save(self.path, self.config)

    def _refuse_infinite(self, numbers: dict[str, float], step: int) -> None:
        for name, number in numbers.items():
            if not math.isfinite(number):
                good = self.state.rows[-1]["step"] if self.state.rows else None
                place = f" in {self.path}" if self.path else ""
                last = (
                    "there is no good checkpoint"
                    if good is None
                    else f"the last good checkpoint, of step {good}, is{place}"
                )
                raise InputError(
                    f"the {name} is {number} at step {step}; {last}; lower --learning_rate, which is "
                    f"{self.settings.learning_rate:g}, and pass --overwrite true."
                )


def _order(keep: str) -> Callable[[dict[str, Any]], tuple[float, ...]]:
    """What a row of the curve is sorted by, the best first.

    Not the whole loss: latents grow while they learn, and the codebook and commitment losses with them, whose unit they are.
    """
    if keep == "last":
        return lambda row: (-row["step"],)
    return lambda row: (row["reconstruction"],) if keep == "best_loss" else (row["collision"], row["reconstruction"])
