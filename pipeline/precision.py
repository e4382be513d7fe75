"""Which number format trains fast on this machine."""

from __future__ import annotations

import torch


def has_bf16(device: str | None = None) -> bool:
    """Whether bfloat16 products are fast here: a GPU that has them, or a processor with AVX-512 BF16 or AMX.

    device: "cuda" or "cpu"; left out, the GPU where there is one.
    """
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
