"""Priors of positive quantities, as densities of the unbounded numbers that are learned.

A density changes with the variable it is a density of: what is learned is the logarithm of a rate, or of an inverse
dispersion, and the log-density of that has the log-Jacobian in it. Without it the most probable value of a rate with a
Gamma(1, 100) prior would be zero; with it, it is the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_HALF_LOG_2PI_E = 0.5 * math.log(2.0 * math.pi * math.e)


@dataclass(frozen=True)
class GammaPrior:
    """Gamma distribution of a positive number.

    Parameters
    ----------
    shape, rate
        Both positive; the mean is ``shape / rate``.
    """

    shape: float
    rate: float

    def log_density_of_log(self, log_value: Tensor) -> Tensor:
        """Log-density of the logarithm of the number, at ``log_value``; its maximum is at the log of the mean."""
        constant = self.shape * math.log(self.rate) - math.lgamma(self.shape)
        return constant + self.shape * log_value - self.rate * log_value.exp()

    def divided(self, n: int) -> GammaPrior:
        """Return the distribution of each of ``n`` independent numbers whose sum has this one."""
        return GammaPrior(self.shape / n, self.rate)


@dataclass(frozen=True)
class DispersionPrior:
    r"""Containment prior of inverse dispersions: :math:`\lambda \sim \mathrm{Gamma}(a, b)`, then
    :math:`\theta_g^{-1/2} \sim \mathrm{Exponential}(\lambda)` for each gene.

    It pulls theta up, towards the Poisson, with a strength that is learned from all genes (Simpson et al. 2017).

    Parameters
    ----------
    shape, rate
        :math:`a` and :math:`b`.
    """  # noqa: D205

    shape: float = 9.0
    rate: float = 3.0

    def elbo(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        r"""Return the negative divergence of a posterior from the prior, the rate integrated out.

        With :math:`\log\theta_g \sim \mathrm{Normal}(\mu_g, \sigma_g)`, :math:`u = \theta^{-1/2}`, and
        :math:`E u_g = \exp(-\mu_g / 2 + \sigma_g^2 / 8)`,

        .. math::

            \max_{q(\lambda)} -\mathrm{KL} = a \log b - \log\Gamma(a) + \log\Gamma(a + G)
                - (a + G) \log\Big(b + \sum_g E u_g\Big)
                + \sum_g \Big( \tfrac12 \log 2 \pi e + \log\sigma_g - \tfrac{\mu_g}{2} - \log 2 \Big).

        :math:`-\mu/2 - \log 2` is the expected log-Jacobian of u by log theta. The best :math:`q(\lambda)` is
        :math:`\mathrm{Gamma}(a + G, b + \sum E u_g)`, so it has no parameters of its own. Without data the maximum is
        at :math:`\sigma = 2`, :math:`E\lambda = a / b`, :math:`E u = b / a` and :math:`e^\mu = e\,(a / b)^2`.

        Parameters
        ----------
        loc, log_scale
            :math:`\mu` and :math:`\log\sigma`, shape ``(groups, genes)``; each group has a rate of its own.

        Returns
        -------
        Tensor
            One number in nats, summed over groups and genes.
        """
        a = self.shape + loc.shape[-1]
        # log Gamma(a) - a log a: two numbers of the size of the data's would lose the digits of their difference.
        constant = self.shape * math.log(self.rate) - math.lgamma(self.shape) + math.lgamma(a) - a * math.log(a)
        rates = constant + a * self.rate_mean(loc, log_scale).log()
        posteriors = _HALF_LOG_2PI_E - math.log(2.0) + log_scale - 0.5 * loc
        return rates.sum() + posteriors.sum()

    def rate_mean(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        """Posterior mean of the rate of each group, shape ``(groups,)``."""
        u = torch.exp(-0.5 * loc + 0.125 * (2 * log_scale).exp())
        return (self.shape + loc.shape[-1]) / (self.rate + u.sum(-1))
