"""What each modality says about the cell state, and how much of the state each decoder uses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from countvi.batch import Batch
from countvi.likelihoods.ambient_rate import AmbientRate
from countvi.models.regularized import Regularized
from countvi.query.cells import Cells, map_cells
from countvi.query.draws import posterior_mean


def modality_latents(model: Regularized, cells: Cells) -> dict[str, np.ndarray]:
    """Posterior mean of what each modality alone says about the cell state.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to encode.

    Returns
    -------
    dict
        By modality, shape ``(cells, dimensions)``: its slice of a concatenated cell state, or what enters a weighted
        mean. NaN in cells without the modality. Empty for a model with a single encoder.
    """
    names: list[str] = []

    def means(batch: Batch) -> list[Tensor]:
        parts = model.encode_z.of_modalities(batch, model.covariates(batch.design))
        names[:] = parts
        masks = [batch.design.measured(name) for name in parts]
        return [
            q.loc if mask is None else q.loc.masked_fill(~mask.unsqueeze(-1), torch.nan)
            for q, mask in zip(parts.values(), masks, strict=True)
        ]

    values = map_cells(model, cells, means)
    return dict(zip(names, values, strict=True))


def modality_attribution(model: Regularized, cells: Cells, *, relative: bool = False) -> dict[str, np.ndarray]:
    r"""Mean absolute slope of each modality's expected counts by each dimension of z.

    .. math::

        A_{nj} = \frac1G \sum_g \left| \frac{\partial \mu_{ng}}{\partial z_{nj}} \right|
        \qquad\text{or, relative,}\qquad
        \frac{\sum_g \left| \partial \mu_{ng} / \partial z_{nj} \right|}{\sum_g \mu_{ng}}

    at the posterior means of z and of the library size: exact, deterministic, in the memory of one block of cells.

    Parameters
    ----------
    model
        The model.
    cells
        Cells to decode.
    relative
        Divide by the total of the expected counts rather than by the number of genes. The result is the share of counts
        that one unit of z moves: it has no units, so modalities and depths can be compared.

    Returns
    -------
    dict
        By modality, shape ``(cells, latent)``. In a cell that a modality was not measured in, of what is expected of
        it there.
    """

    def slopes(batch: Batch) -> list[Tensor]:
        latents, design = posterior_mean(model.guide(batch)), batch.design
        features = model.covariates(design)
        out = []
        for i, part in enumerate(model.modalities.values()):
            rate = part.rate(latents.z, latents.log_library[:, i], features, design)
            hidden = part.decode.slopes(latents.z, features, design)
            out.append(_mean_slopes(rate, hidden, relative))
        return out

    values = map_cells(model, cells, slopes)
    return dict(zip(model.names, values, strict=True))


def _mean_slopes(rate: AmbientRate, by_hidden: Tensor, relative: bool) -> Tensor:
    """Sum of absolute slopes over genes, ``(cells, latent)``, from those of the last hidden layer."""
    mean, rho = rate.mean, functional.softplus(rate.logits)
    # d mu / d logit = mu * (share of mu that is the cell's own) * (slope of log softplus): never negative.
    by_logit = mean * rate.own_share * torch.where(rho > 0, torch.sigmoid(rate.logits) / rho, 1.0)
    total = torch.stack([(by_logit * (hidden @ rate.weight.T).abs()).sum(-1) for hidden in by_hidden], dim=-1)
    return total / (mean.sum(-1, keepdim=True) if relative else mean.shape[-1])
