"""How a decoder's unnormalised output becomes a rate."""

from __future__ import annotations

from enum import Enum


class Link(Enum):
    """From logits to rho, the mean of a gene before it is multiplied by the library size."""

    SOFTMAX = "softmax"
    """rho sums to one over the genes of a cell: frequencies."""
    SOFTPLUS = "softplus"
    """rho is any positive number, gene by gene; goes with size factors."""
