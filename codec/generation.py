"""Latents that go on from given ones: drawn, the likeliest, or by beam search, with all keys and values kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sidrec.codec.rq_transformer import RQTransformer
from sidrec.decoding.rq_transformer.blocks import KeyValues
from sidrec.pipeline.ranges import check_least


@dataclass(frozen=True)
class Sampling:
    """How codes are chosen. temperature 0: the likeliest code. top_k: the likeliest so many, 0 for all."""

    temperature: float = field(default=0.0, metadata={"help": "0: the likeliest code each time; 1: as the model says."})
    top_k: int = field(default=0, metadata={"help": "Draw from so many of the likeliest codes; 0 = all."})

    def __post_init__(self) -> None:
        check_least(self, "temperature", 0.0)
        check_least(self, "top_k", 0)

    def choose(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """A code for every row, int64 [B], of logits [B, K]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.float() / self.temperature
        if self.top_k:
            least = scaled.topk(min(self.top_k, scaled.shape[-1])).values[:, -1:]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        return torch.multinomial(scaled.softmax(-1), 1, generator=generator)[:, 0]


class Continuation:
    """A batch of code sequences that grows by one latent at a time. All rows are equally long."""

    def __init__(self, model: RQTransformer, codes: Tensor) -> None:
        """codes: int64 [B, T, D], T may be 0."""
        assert codes.ndim == 3
        assert codes.shape[2] == model.n_levels
        self.model = model
        self.caches = [KeyValues() for _ in model.spatial.layers]
        inputs = model.first.expand(len(codes), 1, -1)
        if codes.shape[1]:
            inputs = torch.cat([inputs, model.project(model.sums(codes)[:, :, -1])], 1)
        self.state = model.spatial(inputs, self.caches)[:, -1]

    def advance(self, codes: Tensor) -> None:
        """Take one latent's codes, int64 [B, D]."""
        inputs = self.model.project(self.model.sums(codes)[:, -1:])
        self.state = self.model.spatial(inputs, self.caches)[:, -1]

    def next_codes(self, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
        """Codes of the next latent, int64 [B, D], chosen one after the other."""
        model, chosen = self.model, list[Tensor]()
        caches = [KeyValues() for _ in model.depth.layers]
        hidden, total = self.state[:, None], None
        for level, head in enumerate(model.heads):
            states = model.depth(hidden + model.place[level], caches)
            chosen.append(sampling.choose(head(states[:, -1]), generator))
            vector = torch.nn.functional.embedding(chosen[-1], model.codebook(level))
            total = vector if total is None else total + vector
            hidden = model.to_depth(total / model.unit)[:, None]
        return torch.stack(chosen, 1)

    def likeliest(self, n_beams: int) -> tuple[Tensor, Tensor]:
        """The next latent by beam search: codes int64 [B, n, D] and log p, float32 [B, n], the best first; n at most n_beams."""
        model, n_rows = self.model, len(self.state)
        codes = torch.zeros(n_rows, 1, 0, dtype=torch.int64, device=self.state.device)
        scores = self.state.new_zeros(n_rows, 1)
        for level, head in enumerate(model.heads):
            width = codes.shape[1]
            states = self.state[:, None, None].expand(-1, width, 1, -1)
            earlier = model.to_depth(model.sums(codes)) if level else states[:, :, :0]
            hidden = torch.cat([states, earlier], 2).flatten(0, 1) + model.place[: level + 1]
            log_probs = head(model.depth(hidden)[:, -1]).float().log_softmax(-1)
            every = (scores.flatten()[:, None] + log_probs).view(n_rows, -1)
            scores, place = every.topk(min(n_beams, every.shape[1]))
            beam, code = place // model.sizes[level], place % model.sizes[level]
            earlier_codes = codes.gather(1, beam[..., None].expand(-1, -1, level))
            codes = torch.cat([earlier_codes, code[..., None]], 2)
        return codes, scores


@torch.no_grad()
def continued(
    model: RQTransformer, codes: Tensor, n_latents: int, sampling: Sampling, generator: torch.Generator | None = None
) -> Tensor:
    """The next latents' codes, int64 [B, n_latents, D], after codes int64 [B, T, D]."""
    sequence = Continuation(model, codes)
    written = list[Tensor]()
    for place in range(n_latents):
        if place:
            sequence.advance(written[-1])
        written.append(sequence.next_codes(sampling, generator))
    return torch.stack(written, 1)
