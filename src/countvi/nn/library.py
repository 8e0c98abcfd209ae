"""Library size: given by the data, given by the user, or inferred."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from countvi.batch import CountBlock, Design, Factor
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.latent import Gaussian, Given, Latent


class ObservedLibrary(nn.Module):
    """The library size of a cell is its total count. An empty cell has log-library minus infinity and rate zero."""

    def guide(self, counts: CountBlock, features: Tensor | None, design: Design) -> Latent:
        """Return the log total of each cell, shape ``(cells,)``."""
        return Given(counts.totals().log())

    def prior(self, design: Design) -> Latent:
        """What is observed has no prior."""
        return Given()


class SizeFactorLibrary(nn.Module):
    """The library size of a cell is the size factor that the user gave."""

    def guide(self, counts: CountBlock, features: Tensor | None, design: Design) -> Latent:
        """Return the log size factor of each cell, shape ``(cells,)``."""
        assert design.size_factor is not None, "a model with size factors got a design without"
        return Given(design.size_factor.log())

    def prior(self, design: Design) -> Latent:
        """What is given has no prior."""
        return Given()


class LogNormalLibrary(nn.Module):
    r"""Inferred library size, :math:`\log \ell_n \sim \mathrm{Normal}(m_{s_n}, v_{s_n})` with moments per batch.

    Parameters
    ----------
    encode
        Amortised posterior of the log library size.
    batch
        The covariate whose levels have a prior of their own.
    loc, scale
        Prior mean and standard deviation of the log library size per level, shape ``(levels,)``.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, encode: GaussianEncoder, batch: Factor, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.encode = encode
        self.batch = batch
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def guide(self, counts: CountBlock, features: Tensor | None, design: Design) -> Latent:
        """Return the posterior of the log library size, ``(cells,)``."""
        return self.encode(counts, features, design)

    def prior(self, design: Design) -> Latent:
        """Return the prior of the log library size, ``(cells,)``."""
        level = design.levels(self.batch)
        return Gaussian(loc=self.loc[level], scale=self.scale[level], event_dims=0)


Library = ObservedLibrary | SizeFactorLibrary | LogNormalLibrary
"""Any of the three."""


def library_moments(totals: Tensor, level: Tensor, n_levels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the log total per batch, over cells with counts.

    A batch with fewer than two such cells, or without spread, takes the moments of all cells, so that the prior is
    proper.

    Parameters
    ----------
    totals
        Total count per cell, shape ``(cells,)``.
    level
        Batch code per cell, shape ``(cells,)``.
    n_levels
        Number of batches.

    Returns
    -------
    loc, scale
        Shape ``(n_levels,)`` each, float32.
    """
    known = totals > 0
    logs, level = totals[known].double().log(), level[known]
    pooled_loc = logs.mean() if logs.numel() else logs.new_zeros(())
    pooled_scale = logs.std(correction=0) if logs.numel() > 1 and logs.std(correction=0) > 0 else logs.new_ones(())
    n = torch.bincount(level, minlength=n_levels).to(logs)
    mean = torch.zeros(n_levels, dtype=logs.dtype).index_add(0, level, logs) / n.clamp(min=1)
    centred = (logs - mean[level]).square()
    scale = (torch.zeros(n_levels, dtype=logs.dtype).index_add(0, level, centred) / n.clamp(min=1)).sqrt()
    loc = torch.where(n > 0, mean, pooled_loc)
    scale = torch.where((n > 1) & (scale > 0), scale, pooled_scale)
    return loc.float(), scale.float()
