"""Draws from the posterior itself, by importance sampling with the guide as proposal.

The guide q(u | x) is an approximation. Of several draws from it, each counts as often as the ratio of the posterior to
the guide says. This is done cell by cell, so that a population's draws keep all of its cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from countvi.batch import Batch
from countvi.models.count_model import CountModel
from countvi.nn.latent import Given
from countvi.query.draws import draw, sample_chunks


@dataclass(frozen=True)
class Importance:
    """How importance sampling is done.

    Parameters
    ----------
    n_proposals
        Draws from the guide for each cell.
    truncated
        Cut the weights of a cell at their mean times the root of ``n_proposals`` (Ionides 2008): a little bias, for
        much less variance where a few draws have all the weight.
    """

    n_proposals: int = 32
    truncated: bool = False

    def weights(self, log_weights: Tensor) -> Tensor:
        """Normalised weights of the proposals of each cell.

        Parameters
        ----------
        log_weights
            Log of the ratios of joint density to guide, shape ``(proposals, cells)``.
        """
        weights = (log_weights - log_weights.logsumexp(0)).exp()
        if self.truncated:
            n = weights.shape[0]
            weights = weights.clamp(max=n**-0.5)  # their mean is 1 / n
            weights = weights / weights.sum(0)
        return weights


def log_importance(model: CountModel, q: Any, p: Any, latents: Any, batch: Batch) -> Tensor:
    r"""Log of :math:`p(x \mid u)\, p(u) / q(u \mid x)` at draws, shape ``(samples, cells)``, float64, on the CPU."""
    total: Tensor | None = None
    likelihoods = model.generate(latents, batch.design)
    for name, likelihood in likelihoods.items():
        term = wide(likelihood.log_prob(batch.counts[name]))
        total = term if total is None else total + term
    assert total is not None, "a model without likelihoods"
    drawn = [*zip(q, p, latents, strict=True), *model.conditional(likelihoods, batch.design).values()]
    for posterior, prior, value in drawn:
        if not isinstance(posterior, Given):
            total = total + wide(prior.log_prob(value) - posterior.log_prob(value))
    return total


@dataclass(frozen=True, eq=False)
class Proposals:
    """Draws from the guide for some cells, and what each counts.

    Parameters
    ----------
    q
        The guide.
    latents
        ``(proposals, cells, ...)``; what is given has no proposals axis.
    weights
        ``(proposals, cells)``; sums to one over proposals.
    """

    q: Any
    latents: Any
    weights: Tensor

    @classmethod
    def of(
        cls, model: CountModel, batch: Batch, importance: Importance, chunk: int, source: torch.Generator
    ) -> Proposals:
        """Draw proposals for the cells of a batch; at most ``chunk`` are decoded at once, if that many cells allow."""
        q, p = model.guide(batch), model.prior(batch.design)
        latents = draw(model, q, source, importance.n_proposals)
        parts = [
            log_importance(model, q, p, _select(q, latents, lambda v, run=run: v[run]), batch)
            for run in sample_chunks(importance.n_proposals, batch.n_cells, chunk)
        ]
        weights = importance.weights(torch.cat(parts))
        return cls(q, latents, weights.to(batch.design.codes.device, torch.float32))

    def at(self, run: slice) -> Any:
        """Return some of the proposals of all cells."""
        return _select(self.q, self.latents, lambda value: value[run])

    def resampled(self, cells: Tensor, source: torch.Generator) -> Any:
        """Draw one proposal for each entry of ``cells``, positions of cells with repeats, by its weight.

        Returns
        -------
        NamedTuple
            Latent variables ``(len(cells), ...)``.
        """
        chosen = torch.multinomial(self.weights.T[cells], 1, generator=source).squeeze(1)
        return _select(self.q, self.latents, lambda value: value[chosen, cells], lambda value: value[cells])

    def drawn(self, n_samples: int, source: torch.Generator) -> Any:
        """Draw proposals of all cells by their weights: ``(n_samples, cells, ...)``."""
        n_cells = self.weights.shape[1]
        chosen = torch.multinomial(self.weights.T, n_samples, replacement=True, generator=source).T
        cells = torch.arange(n_cells, device=chosen.device)
        return _select(self.q, self.latents, lambda value: value[chosen, cells])


def _select(
    q: Any, latents: Any, drawn: Callable[[Tensor], Tensor], given: Callable[[Tensor], Tensor] = lambda value: value
) -> Any:
    return type(q)(*(given(v) if isinstance(latent, Given) else drawn(v) for latent, v in zip(q, latents, strict=True)))


def wide(value: Tensor) -> Tensor:
    """Return a tensor in float64 on the CPU."""
    # On the CPU first: not every accelerator has float64.
    return value.cpu().double()
