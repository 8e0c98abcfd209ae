"""The axis vocabulary: one name for each axis of a tensor, used in every signature.

Axes: ``samples`` (Monte-Carlo draws, always first), ``cells`` (or ``spots``), ``genes`` (``proteins``,
``peaks``: the features, always last), ``latent``, ``hidden``, ``levels`` (categories of one covariate).
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

Cells = Annotated[Tensor, "*samples cells"]
"""One number per cell."""
CellsGenes = Annotated[Tensor, "*samples cells genes"]
"""One number per cell and gene."""
CellsLatent = Annotated[Tensor, "*samples cells latent"]
"""Coordinates of cells in the latent space."""
CellsHidden = Annotated[Tensor, "*samples cells hidden"]
"""Activations of a hidden layer."""
Genes = Annotated[Tensor, "genes"]
"""One number per gene."""
GenesOrCellsGenes = Annotated[Tensor, "genes | cells genes"]
"""One number per gene, or per cell and gene."""
Codes = Annotated[Tensor, "cells columns (int64)"]
"""Integer codes of categorical covariates."""
