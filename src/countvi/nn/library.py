"""Library size: given by the data, given by the user, or inferred."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from countvi.batch import CountBlock, Design, Factor
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.latent import Gaussian, Given, Latent
from countvi.nn.levels import ByLevel

# Two cells may have the same total by chance; a prior that narrow would be a constraint to it.
_MIN_LIBRARY_SCALE = 0.05


class ObservedLibrary(nn.Module):
    """The library size of a cell is its total count. An empty cell has log-library minus infinity and rate zero."""

    def guide(self, counts: CountBlock, features: Tensor | None, design: Design, *others: CountBlock) -> Latent:
        """Return the log total of each cell, shape ``(cells,)``."""
        return Given(counts.totals().log())

    def prior(self, design: Design) -> Latent:
        """What is observed has no prior."""
        return Given()


class SizeFactorLibrary(nn.Module):
    """The library size of a cell is the size factor that the user gave."""

    def guide(self, counts: CountBlock, features: Tensor | None, design: Design, *others: CountBlock) -> Latent:
        """Return the log size factor of each cell, shape ``(cells,)``."""
        assert design.size_factor is not None, "a model with size factors got a design without"
        return Given(design.size_factor.log())

    def prior(self, design: Design) -> Latent:
        """What is given has no prior."""
        return Given()


class LogNormalLibrary(ByLevel):
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

    tables = ("loc", "scale")
    loc: Tensor
    scale: Tensor

    def __init__(self, encode: GaussianEncoder, batch: Factor, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.encode = encode
        self.batch = batch
        self.factors = (batch,)
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def guide(self, counts: CountBlock, features: Tensor | None, design: Design, *others: CountBlock) -> Latent:
        """Return the posterior of the log library size, ``(cells,)``; the encoder may see other modalities too."""
        return self.encode(counts, features, design, *others)

    def prior(self, design: Design) -> Latent:
        """Return the prior of the log library size, ``(cells,)``."""
        level = design.levels(self.batch)
        return Gaussian(loc=self.loc[level], scale=self.scale[level], event_dims=0)


class ResidualLibrary(ByLevel):
    r"""Inferred library size that starts from the total count.

    .. math::

        \log \ell_n &\sim \mathrm{Normal}(m_{p_n}, v_{p_n}) && \text{prior, by group p} \\
        q(\log \ell_n \mid x_n) &= \mathrm{Normal}(c + w (\log T_n - c) + f(x_n), s(x_n)) && \text{guide}

    T is the total of a cell (1 for one without counts), c the mean of log T over cells, w is learned and starts at
    one, and f starts near zero.

    Parameters
    ----------
    encode
        f and s, a small network.
    group
        The covariate whose levels have a prior of their own.
    moments
        c, m and v.
    """

    tables = ("loc", "scale")
    loc: Tensor
    scale: Tensor
    centre: Tensor

    def __init__(self, encode: GaussianEncoder, group: Factor, moments: LibraryPrior) -> None:
        super().__init__()
        self.encode = encode
        self.group = group
        self.factors = (group,)
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("loc", moments.loc.clone())
        self.register_buffer("scale", moments.scale.clone())
        self.register_buffer("centre", moments.centre.clone())
        with torch.no_grad():
            # A library of the size of the total, known to a tenth: wide posteriors of a logarithm make wild means.
            encode.loc.weight.mul_(0.01)
            encode.loc.bias.zero_()
            encode.log_variance.weight.mul_(0.1)
            encode.log_variance.bias.fill_(2.0 * math.log(0.1))

    def guide(self, counts: CountBlock, features: Tensor | None, design: Design) -> Gaussian:
        """Return the posterior of the log library size, ``(cells,)``."""
        rest = self.encode(counts, features, design)
        log_total = counts.totals().to(rest.loc.dtype).clamp(min=1.0).log()
        return Gaussian(self.centre + self.weight * (log_total - self.centre) + rest.loc, rest.scale, event_dims=0)

    def prior(self, design: Design) -> Gaussian:
        """Return the prior of the log library size, ``(cells,)``."""
        level = design.levels(self.group)
        return Gaussian(loc=self.loc[level], scale=self.scale[level], event_dims=0)


Library = ObservedLibrary | SizeFactorLibrary | LogNormalLibrary
"""What :class:`countvi.models.scvi.SCVI` takes: any of the three."""


@dataclass(frozen=True)
class LibraryPrior:
    """What is known of library sizes before training.

    Parameters
    ----------
    centre
        Mean of the log total over cells, a scalar.
    loc, scale
        Prior mean and standard deviation of the log library size per group, shape ``(levels,)``.
    """

    centre: Tensor
    loc: Tensor
    scale: Tensor

    @classmethod
    def unknown(cls, n_levels: int) -> LibraryPrior:
        """Values to be overwritten by saved ones."""
        return cls(torch.zeros(()), torch.zeros(n_levels), torch.ones(n_levels))

    @classmethod
    def constrained(cls, totals: Tensor, level: Tensor, n_levels: int, variance_weight: float = 0.5) -> LibraryPrior:
        """Estimate from totals, with less spread than they have, so that differences in depth do not explain biology.

        Parameters
        ----------
        totals
            Total count per cell, shape ``(cells,)``; cells without counts do not count. Pass only cells that the
            modality was measured in.
        level
            Group per cell, shape ``(cells,)``.
        n_levels
            Number of groups; one with fewer than two cells takes the spread of all.
        variance_weight
            Share of the variance that the prior keeps.
        """
        loc, scale = library_moments(totals, level, n_levels)
        logs = totals[totals > 0].double().log()
        centre = logs.mean().float() if logs.numel() else torch.zeros(())
        return cls(centre, loc, (scale * math.sqrt(variance_weight)).clamp(min=_MIN_LIBRARY_SCALE))


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
