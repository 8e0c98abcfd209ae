"""Normal around the rate.

Computed densely: the square of a sum, expanded so that the zeros stay sparse, is a difference of large numbers.
"""

from __future__ import annotations

import math

from torch import Tensor

from countvi.batch import CountBlock
from countvi.ops.link import Link
from countvi.ops.reference.rate import log_rate
from countvi.typing import CellsGenes, PerCell


def normal(logits: CellsGenes, log_library: PerCell, log_scale: Tensor, counts: CountBlock, link: Link) -> PerCell:
    """Log-likelihood per cell."""
    mean = log_rate(logits, log_library, link).exp()
    z = (counts.to_dense().to(mean.dtype) - mean) * (-log_scale).exp()
    return -(0.5 * z * z + log_scale + 0.5 * math.log(2 * math.pi)).sum(-1)
