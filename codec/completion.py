"""Text goes on in latent space: encode the prompt, let the RQ-Transformer write latents, decode them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sidrec.codec.generation import Continuation, Sampling, continued
from sidrec.codec.rq_transformer import RQTransformer
from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.text_rows import TextRows
from sidrec.codec.word_pieces import token_ids
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import require_finished

CANDIDATES = 64  # latents among which one is looked for that begins as the prompt ends


@dataclass(frozen=True)
class TextCodec:
    """A trained codec and its tokenizer; with a model of codes it completes text.

    stop: the token that ends a document.
    """

    codec: RQVAE
    tokenizer: PreTrainedTokenizerBase
    stop: int
    model: RQTransformer | None = None

    @staticmethod
    def open(run_dir: Path, completes: bool = False) -> TextCodec:
        """Of a run directory with text/ and codec/, and codec_transformer/ where it shall complete. Raises InputError as stages do."""
        require_finished(run_dir, "text", "sidrec codec text")
        folder = require_finished(run_dir, "codec", "accelerate launch codec/train_vae.py")
        text, codec, model = TextRows.open(run_dir), RQVAE.load(folder), None
        if not codec.settings.quantize:
            raise InputError(f"{folder} was trained with quantize false, so it has no codes; train one that quantizes.")
        if completes:
            if not codec.network.causal:
                raise InputError(
                    f"{folder} was trained with causal false: a prompt's latents would change with every word that follows; train a causal "
                    "one to complete text."
                )
            command = "accelerate launch codec/train_transformer.py"
            model = RQTransformer.load(require_finished(run_dir, "codec_transformer", command))
        return TextCodec(codec, text.tokenizer, text.eos_id, model)

    def tokens(self, text: str) -> list[int]:
        return token_ids(self.tokenizer, [text])[0]

    def text(self, tokens: list[int]) -> str:
        """Up to the end of the document."""
        end = tokens.index(self.stop) if self.stop in tokens else len(tokens)
        return self.tokenizer.decode(
            [token for token in tokens[:end] if token != self.codec.pad], clean_up_tokenization_spaces=False
        )

    def encode(self, text: str) -> Tensor:
        """Codes int64 [T, D] of a text; [0, D] of an empty one."""
        tokens = self.tokens(text)
        if not tokens:
            return torch.empty(0, len(self.codec.quantizer.sizes), dtype=torch.int64)
        return self.codec.encode(torch.tensor([tokens]), torch.tensor([len(tokens)]))[0]

    def decode(self, codes: Tensor) -> str:
        """The text of codes int64 [T, D]."""
        return self.text(self.codec.decode(codes[None])[0].tolist()) if len(codes) else ""

    def complete(
        self, prompts: list[str], n_tokens: int, sampling: Sampling, generator: torch.Generator | None = None
    ) -> list[str]:
        """What follows each prompt: at most n_tokens tokens, fewer where the document ends. Prompts of equal length go together."""
        assert self.model is not None
        beginnings = [self.beginning(prompt) for prompt in prompts]
        answers = [""] * len(prompts)
        for length in sorted({len(codes) for codes, _ in beginnings}):
            places = [place for place, (codes, _) in enumerate(beginnings) if len(codes) == length]
            codes = torch.stack([beginnings[place][0] for place in places])
            n_latents = self.codec.n_latents(n_tokens)
            written = torch.cat([codes, continued(self.model, codes, n_latents, sampling, generator)], 1)
            decoded = self.codec.decode(written)
            for place, tokens in zip(places, decoded.tolist(), strict=True):
                start = beginnings[place][1]
                answers[place] = self.text(tokens[start : start + n_tokens])
        return answers

    def stream(
        self, prompt: str, n_tokens: int, sampling: Sampling, generator: torch.Generator | None = None
    ) -> Iterator[str]:
        """`complete` of one prompt, a piece of text for every latent as soon as it is written."""
        assert self.model is not None
        codes, start = self.beginning(prompt)
        sequence, written = Continuation(self.model, codes[None]), codes[None]
        told = ""
        while True:
            chosen = sequence.next_codes(sampling, generator)
            written = torch.cat([written, chosen[:, None]], 1)
            tokens = self.codec.decode(written)[0].tolist()[start : start + n_tokens]
            whole = self.text(tokens)
            if not whole.endswith("\ufffd"):  # the bytes of a character may not all be there
                yield whole[len(told) :]
                told = whole
            if self.stop in tokens or len(tokens) == n_tokens:
                yield whole[len(told) :]
                return
            sequence.advance(chosen)

    @torch.no_grad()
    def beginning(self, prompt: str) -> tuple[Tensor, int]:
        """The codes that a prompt begins with, int64 [T, D], and its number of tokens.

        Where the prompt ends inside a latent, the last one is the likeliest latent whose text begins with the prompt's last tokens; where
        none of CANDIDATES does, the encoder's own of these tokens.
        """
        assert self.model is not None
        tokens = self.tokens(prompt)
        codes, n_over = self.encode(prompt), len(tokens) % self.codec.compression
        if not n_over:
            return codes, len(tokens)
        whole = codes[:-1]
        candidates, _ = Continuation(self.model, whole[None]).likeliest(CANDIDATES)
        ways = torch.cat([whole.expand(candidates.shape[1], -1, -1), candidates[0][:, None]], 1)
        ends = self.codec.decode(ways)[:, -self.codec.compression :][:, :n_over].tolist()
        fitting = [way for way, end in zip(ways, ends, strict=True) if end == tokens[-n_over:]]
        return (fitting[0] if fitting else codes), len(tokens)
