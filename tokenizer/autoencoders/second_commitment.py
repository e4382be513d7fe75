"""A second commitment term, for codebooks whose levels are mixtures of codes in training.

Beside ||r_l - sg[e_l]||^2, RQ-VAE is sometimes written with ||r_{l+1} - sg[r_l - C_l[k_l]]||^2: what a level leaves over shall be what its
code leaves over. With hard codes r_{l+1} is r_l - C_l[k_l] itself: the term is 0 and so is its gradient, whatever its weight. It says
something only where r_{l+1} = r_l - m_l, with a mixture m_l of codes: it is ||m_l - C_l[k_l]||^2 in value. Its gradient moves latents and
codes; the weights of the mixture are constants to it, so that it does not make mixtures sharper: the temperature does.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss


def second_commitment(residuals: list[Tensor], chosen: list[Tensor], hard: list[Tensor]) -> list[Tensor]:
    """||(r_l - m_l) - sg[r_l - C_l[k_l]]||^2 of each level, a mean over rows and dimensions.

    residuals: r_l; chosen: m_l, what is summed and taken from r_l; hard: C_l[k_l], the nearest code's vector; each [n, e].
    """
    levels = zip(residuals, chosen, hard, strict=True)
    return [mse_loss(r - m, (r - e).detach()) for r, m, e in levels]
