"""From the decoder's logits to the logarithm of the mean."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from countvi.ops.link import Link
from countvi.typing import CellsGenes, PerCell

EXACT_SOFTPLUS = 80.0
"""Beyond this, log(1 + exp(x)) is x in float64 too, and exp(x) does not yet overflow float32."""

_LOWEST = -40.0
"""Below this, log(softplus(x)) = x - exp(x) / 2 + ... is x in float64 too."""


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), exact for every x including -inf."""
    return functional.softplus(x, threshold=EXACT_SOFTPLUS)


def log_softplus(x: Tensor) -> Tensor:
    """Return log(log(1 + exp(x))), also where the softplus underflows."""
    return softplus(x.clamp(min=_LOWEST)).log() - functional.relu(_LOWEST - x)


def log_scale(logits: CellsGenes, link: Link) -> CellsGenes:
    """Logarithm of rho."""
    return logits.log_softmax(-1) if link is Link.SOFTMAX else log_softplus(logits)


def scale(logits: CellsGenes, link: Link) -> CellsGenes:
    """Rho."""
    return logits.softmax(-1) if link is Link.SOFTMAX else softplus(logits)


def log_rate(logits: CellsGenes, log_library: PerCell, link: Link) -> CellsGenes:
    """Logarithm of mu = library * rho."""
    return log_library[..., None] + log_scale(logits, link)
