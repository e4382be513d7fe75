"""The kinds of quantizer, by the name that `--quantizer` takes. Another one is one file and one row."""

from __future__ import annotations

from sidrec.tokenizer.quantizers.coarse_to_fine import CoarseToFine
from sidrec.tokenizer.quantizers.fsq import Fsq
from sidrec.tokenizer.quantizers.given import Given
from sidrec.tokenizer.quantizers.kind import Kind
from sidrec.tokenizer.quantizers.lora import Lora
from sidrec.tokenizer.quantizers.product import Product
from sidrec.tokenizer.quantizers.random import Random
from sidrec.tokenizer.quantizers.rqkmeans import Rqkmeans
from sidrec.tokenizer.quantizers.rqkmeans_fsq import RqkmeansFsq
from sidrec.tokenizer.quantizers.rqkmeans_plus import RqkmeansPlus
from sidrec.tokenizer.quantizers.rqvae import Rqvae
from sidrec.tokenizer.quantizers.vq import Vq

QUANTIZERS: dict[str, type[Kind]] = {
    "rqkmeans": Rqkmeans,
    "rqkmeans_plus": RqkmeansPlus,
    "rqvae": Rqvae,
    "vq": Vq,
    "lora": Lora,
    "fsq": Fsq,
    "rqkmeans_fsq": RqkmeansFsq,
    "product": Product,
    "coarse_to_fine": CoarseToFine,
    "random": Random,
    "given": Given,
}
