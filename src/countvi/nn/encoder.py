"""Encoders: from a cell's counts to the distribution of a latent variable."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from countvi import ops
from countvi.batch import CountBlock, Design, Factor
from countvi.nn.latent import Gaussian
from countvi.nn.linear import CountInput
from countvi.nn.mlp import Mlp, MlpConfig

# Keeps a posterior from collapsing onto a point (scvi-tools: var_eps).
_MIN_VARIANCE = 1e-4
# exp(20) is a variance no posterior of a unit-normal prior has; beyond it lies only overflow.
_MAX_LOG_VARIANCE = 20.0


class GaussianEncoder(nn.Module):
    r"""Amortised normal posterior :math:`q(z \mid x) = \mathrm{Normal}(m(x), \mathrm{diag}\,v(x))`.

    Parameters
    ----------
    n_genes
        Number of genes.
    n_out
        Dimensions of the latent variable; ``None`` for a single number per cell (no trailing axis).
    config
        Shape of the layers.
    log1p
        Encode ``log(1 + x)`` rather than the counts.
    n_features, factors
        Continuous covariate features and categorical covariates that the encoder sees.
    others
        Numbers of features of other modalities whose counts the encoder sees too.
    divide
        Divide the counts of each modality of a cell by one plus their mean first.
    """

    def __init__(
        self,
        n_genes: int,
        n_out: int | None,
        config: MlpConfig,
        *,
        log1p: bool = True,
        n_features: int = 0,
        factors: Sequence[Factor] = (),
        others: Sequence[int] = (),
        divide: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = Mlp(n_genes, config, n_features, factors, others)
        self.loc = nn.Linear(config.n_hidden, n_out or 1)
        self.log_variance = nn.Linear(config.n_hidden, n_out or 1)
        self.log1p = log1p
        self.divide = divide
        self.event_dims = 0 if n_out is None else 1

    def forward(self, counts: CountBlock, features: Tensor | None, design: Design, *others: CountBlock) -> Gaussian:
        """Return the posterior, ``(cells, n_out)``, or ``(cells,)`` for a single number per cell."""
        blocks = (counts, *others)
        divisors = [1.0 + block.totals() / block.n_features if self.divide else None for block in blocks]
        h = self.mlp(CountInput(blocks, self.log1p, divisors), features, design)
        loc, log_variance = self.loc(h), self.log_variance(h)
        scale = ops.standard_deviation(log_variance, _MIN_VARIANCE, _MAX_LOG_VARIANCE)
        if self.event_dims == 0:
            loc, scale = loc.squeeze(-1), scale.squeeze(-1)
        return Gaussian(loc=loc, scale=scale, event_dims=self.event_dims)


class Softmax(nn.Module):
    """Cell state on the simplex (``latent_distribution="ln"``: a logistic normal)."""

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(*samples, cells, latent)`` to the simplex."""
        return z.softmax(-1)
