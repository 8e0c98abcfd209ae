"""An affine map that is not trained."""

from __future__ import annotations

from typing import NamedTuple

from countvi.typing import Genes, GenesHidden


class Affine(NamedTuple):
    """Last layer of a decoder that is not trained: ``x`` times the transposed weight, plus the bias."""

    weight: GenesHidden
    """Shape ``(genes, hidden)``."""
    bias: Genes
    """Shape ``(genes,)``."""
