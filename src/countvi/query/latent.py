"""Cell states: moments, means and draws of their posteriors."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from countvi import seeding
from countvi.batch import Batch
from countvi.models.count_model import CountModel
from countvi.nn.latent import Given
from countvi.query.cells import Cells, map_cells
from countvi.query.draws import RunningMean, Stream, generator, posterior, posterior_mean, sample_chunks

# Latent coordinates held at once while averaging transformed draws: 16 MiB in float32.
_BLOCK = 2**22


def latent_moments(model: CountModel, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Posterior of the latent variable z of each cell.

    Parameters
    ----------
    model
        A model whose cell state has a posterior.
    cells
        Cells to encode.

    Returns
    -------
    loc, scale
        Mean and standard deviation, shape ``(cells, latent)`` each. Of z itself: with a logistic-normal cell state,
        before the softmax.
    """

    def moments(batch: Batch) -> tuple[Tensor, Tensor]:
        z = getattr(posterior(model, batch), model.state)
        return z.loc, z.scale

    loc, scale = map_cells(model, cells, moments)
    return loc, scale


def latent_states(
    model: CountModel,
    cells: Cells,
    *,
    give_mean: bool = True,
    mc_samples: int = 5000,
    seed: int = seeding.DEFAULT_SEED,
) -> np.ndarray:
    """Cell states, as the model's user sees them.

    Parameters
    ----------
    model
        A model whose cell state has a posterior.
    cells
        Cells to encode.
    give_mean
        Return the posterior mean; otherwise one draw from the posterior.
    mc_samples
        Number of draws for the mean of a transformed state (logistic normal). The mean of an untransformed one is
        exact.
    seed
        Seed of the draws.

    Returns
    -------
    ndarray
        Shape ``(cells, latent)``.
    """
    source = generator(seed, Stream.STATES, cells.device)

    def states(batch: Batch) -> tuple[Tensor]:
        q = posterior(model, batch)
        if not give_mean:
            return (model.cell_state(model.sample(q, source)),)
        centre = posterior_mean(q)
        state = model.cell_state(centre)
        if state is getattr(centre, model.state):  # not transformed, so the mean of the state is the state of the mean
            return (state,)
        mean = RunningMean()
        for run in sample_chunks(mc_samples, state.numel(), _BLOCK):
            mean.add(model.cell_state(model.sample(q, source, run.stop - run.start)))
        return (mean.result(),)

    return map_cells(model, cells, states)[0]


def latent_posteriors(model: CountModel, cells: Cells) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Posterior of every latent variable of each cell: all that decoding needs.

    Returns
    -------
    dict
        Mean and standard deviation by latent variable, ``(cells, ...)``; ``None`` for one that is given. Noise, whose
        posterior is its prior, is left out.
    """
    given: dict[str, bool] = {}

    def parts(batch: Batch) -> list[Tensor]:
        q = posterior(model, batch)
        tensors = []
        for name, latent in zip(q._fields, q, strict=True):
            if name in model.noise:
                continue
            given[name] = isinstance(latent, Given)
            tensors += [latent.value] if isinstance(latent, Given) else [latent.loc, latent.scale]
        return tensors

    arrays = iter(map_cells(model, cells, parts))
    return {name: (next(arrays), None if known else next(arrays)) for name, known in given.items()}
