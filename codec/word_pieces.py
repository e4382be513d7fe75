"""The tokens of a text: a byte-level BPE that is learnt from the training documents, or a pretrained model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.packaged_models import packaged_model, packaged_path
from sidrec.pipeline.screen import Screen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"  # ids 0 and 1 of a learnt tokenizer
LEAST_VOCABULARY = 2 + 256  # the special tokens and the bytes


def train_word_pieces(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocabulary` tokens, fewer where the texts have fewer pairs: PAD, EOS, the 256 bytes, then merges.

    Any text is the same after encoding and decoding, one that holds "<eos>" included. The texts are read once and not held.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    assert vocabulary >= LEAST_VOCABULARY, vocabulary
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        split_special_tokens=True,  # "<eos>" in a text is text
        clean_up_tokenization_spaces=False,
    )


def load_word_pieces(name: str, screen: Screen | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a pretrained model: a packaged one's, a folder's or one of the hub. Where it has no token for padding, that of the
    end stands for it too.

    Raises InputError when it cannot be loaded, is not of the library `tokenizers`, or has no token for the end of a text.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from sidrec.sft import smollm
    from sidrec.sft.backbone import folder_of

    if packaged_model(name) is not None:
        if name != smollm.NAME:
            raise InputError(f"tokenizer={name} is a text encoder, which writes no words; name {smollm.NAME}.")
        packaged_path(name, "tokenizer")  # says so where the package is not installed
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder_of(name, screen))
    except Exception as error:  # the library tokenizers raises nothing narrower
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"tokenizer={name!r} cannot be loaded ({reason}); give a hub name or a folder with tokenizer.json."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"tokenizer={name!r} has no tokenizer.json; give another model's.")
    if tokenizer.eos_token_id is None:
        raise InputError(f"tokenizer={name!r} has no token for the end of a text; give another model's.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.split_special_tokens = True
    return tokenizer


def read_word_pieces(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that `save_pretrained` wrote. Raises InputError when it is missing or damaged."""
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the library tokenizers raises nothing narrower
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{folder / 'tokenizer.json'} cannot be read as a tokenizer ({reason}); run `sidrec codec text --overwrite true`."
        ) from error
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise InputError(
            f"{folder} names no token for the end or for padding; run `sidrec codec text --overwrite true`."
        )
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, without special ones; a special token's name in a text is text."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
