"""History → model input. One renderer for training, rollouts, evaluation and serving.

Format 2: the start token, then the SID tokens of the items, oldest first: `<history><a_1><b_2><a_7><b_0>`. The next item's codes
follow at once. Of a history longer than `max_items`, the newest items are kept. A model with a chat template may have an opening before
it: the user's question and the beginning of the assistant's turn, in which the history stands, so that every item of it is an answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.normaliser import NORMALISERS, Normaliser
from sidrec.decoding.policy import SidVocabulary
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, write_json
from sidrec.tokenizer.semantic_ids import SemanticIds

FORMAT_VERSION = 2
RENDERER_FILE = "sidrec.json"
# consecutive in the vocabulary. <history>: the items taken so far follow; <next>: the item taken after the texts before it follows;
# <item>: an item follows; <text>: a text follows. Serving uses the first only, training on texts (sft/examples.py) all.
CONTROL_TOKENS = ("<history>", "<next>", "<item>", "<text>")


@dataclass(frozen=True)
class Renderer:
    """codes: integers [N, L], on the CPU, the SID of every item. max_items: longest history that the model is given. normaliser: what
    the model's probabilities are normalised over, in training and so in ranking. opening: token ids before the start token."""

    vocabulary: SidVocabulary
    codes: Tensor
    max_items: int
    sid_digest: str
    normaliser: Normaliser = "children"
    opening: tuple[int, ...] = ()

    @classmethod
    def build(
        cls,
        sids: SemanticIds,
        vocabulary: SidVocabulary,
        max_items: int,
        normaliser: Normaliser = "children",
        opening: tuple[int, ...] = (),
    ) -> Renderer:
        return cls(vocabulary, torch.from_numpy(sids.codes), max_items, sids.digest, normaliser, opening)

    def with_codes(self, codes: Tensor) -> Renderer:
        """For a catalogue whose items have changed. codes: integers [N', L], in which the model's items keep theirs."""
        return replace(self, codes=codes)

    @property
    def item_tokens(self) -> Tensor:
        """int64 [N, L]: the token ids of every item's SID."""
        return self.tokens_of(torch.arange(len(self.codes)))

    def tokens_of(self, items: Tensor) -> Tensor:
        """int64 [R, L]: the token ids of the SIDs of `items`, int64 [R]."""
        return self.codes[items] + torch.tensor(self.vocabulary.first_tokens)

    def control(self, token: str) -> int:
        """The id of one of CONTROL_TOKENS."""
        return self.vocabulary.start_token + CONTROL_TOKENS.index(token)

    def tokens(self, history: np.ndarray) -> Tensor:
        """int64 [prompt_length(len(history))]. history: item indices, oldest first."""
        items = torch.as_tensor(history[-self.max_items :], dtype=torch.long)
        start = torch.tensor([*self.opening, self.vocabulary.start_token])
        return torch.cat([start, self.tokens_of(items).flatten()])

    def prompt_length(self, n_items: int) -> int:
        """Tokens that a history of `n_items` is rendered to."""
        return len(self.opening) + 1 + min(n_items, self.max_items) * self.codes.shape[1]

    def batch(self, histories: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Left-padded input ids and attention mask, both int64 [B, T]; the last column is the last token of every history."""
        rows = [self.tokens(history) for history in histories]
        longest = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), longest), self.vocabulary.start_token)
        attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            input_ids[i, longest - len(row) :] = row
            attention_mask[i, longest - len(row) :] = 1
        return input_ids, attention_mask

    def save(self, folder: Path) -> None:
        """Write the format, the vocabulary's place and the SID set's sha256 beside a model."""
        record = {"format_version": FORMAT_VERSION, "max_items": self.max_items, "sid_digest": self.sid_digest}
        record |= {"vocabulary": asdict(self.vocabulary), "normaliser": self.normaliser, "opening": self.opening}
        write_json(folder / RENDERER_FILE, record)

    @classmethod
    def load(cls, folder: Path, sids: SemanticIds) -> Renderer:
        """Read what `save` wrote. Raises InputError when the model was trained with other SIDs or another format."""
        path = folder / RENDERER_FILE
        if not path.exists():
            raise InputError(f"{path} is missing: {folder} is not a model trained by sft/train.py or rl/grpo.py.")
        record = read_json(path)
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(f"{path} has format {version}, this version reads {FORMAT_VERSION}; train again.")
        if record["sid_digest"] != sids.digest:
            raise InputError(
                f"{path} belongs to another SID set than the one given; train the model again on these SIDs."
            )
        if record["normaliser"] not in NORMALISERS:
            raise InputError(
                f"{path} has normaliser {record['normaliser']!r}; one of {', '.join(NORMALISERS)} is known; train again."
            )
        saved = record["vocabulary"]
        vocabulary = SidVocabulary(saved["start_token"], tuple(saved["first_tokens"]), tuple(saved["level_sizes"]))
        return cls.build(sids, vocabulary, record["max_items"], record["normaliser"], tuple(record["opening"]))
