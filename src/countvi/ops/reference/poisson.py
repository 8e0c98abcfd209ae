"""Poisson: log p(x) = x log mu - mu - lgamma(x + 1)."""

from __future__ import annotations

import torch

from countvi.batch import CountBlock
from countvi.ops.link import Link
from countvi.ops.reference.rate import log_rate
from countvi.ops.reference.stored import at_stored, put_stored
from countvi.typing import CellsGenes, PerCell


def poisson(logits: CellsGenes, log_library: PerCell, counts: CountBlock, link: Link) -> PerCell:
    """Log-likelihood per cell."""
    log_mu = log_rate(logits, log_library, link)
    x, stored = counts.values.double(), at_stored(log_mu, counts)
    # A stored zero in an empty cell would be 0 * -inf.
    power = torch.where(x > 0, x * stored, 0.0)
    return put_stored(-log_mu.exp(), power - stored.exp() - torch.lgamma(x + 1), counts).sum(-1)
