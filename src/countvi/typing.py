"""The axis vocabulary: one name for each axis of a tensor, used in every signature.

Axes: ``samples`` (Monte-Carlo draws, always first), ``cells`` (or ``spots``), ``genes`` (``proteins``,
``peaks``: the features, always last), ``types`` (of cells), ``latent``, ``hidden``, ``levels`` (categories of one
covariate).
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

PerCell = Annotated[Tensor, "*samples cells"]
"""One number per cell."""
CellsGenes = Annotated[Tensor, "*samples cells genes"]
"""One number per cell and gene."""
CellsLatent = Annotated[Tensor, "*samples cells latent"]
"""Coordinates of cells in the latent space."""
CellsHidden = Annotated[Tensor, "*samples cells hidden"]
"""Activations of a hidden layer."""
CellsTypes = Annotated[Tensor, "cells types"]
"""One number per cell, or spot, and cell type."""
CellsTypesHidden = Annotated[Tensor, "cells types hidden"]
"""Activations of a hidden layer, one state of each cell type per cell, or spot."""
Genes = Annotated[Tensor, "genes"]
"""One number per gene."""
GenesHidden = Annotated[Tensor, "genes hidden"]
"""Weight of a layer from hidden units to genes."""
GenesOrCellsGenes = Annotated[Tensor, "genes | cells genes"]
"""One number per gene, or per cell and gene."""
Codes = Annotated[Tensor, "cells columns (int64)"]
"""Integer codes of categorical covariates."""
