"""What the spatial model takes from the single-cell model, and where the parameters of spots start."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from countvi import data as data_layer
from countvi.batch import RNA, Batch, CountBlock, Design
from countvi.data import BATCH_COLUMN
from countvi.errors import DataError, DataWarning, MismatchError, NotTrainedError, shorten
from countvi.estimators._build_destvi import (
    Reference,
    SpotStart,
    refuse_later_generation,
    take_reference,
    with_noise,
)
from countvi.estimators._feed import DatasetFeed
from countvi.nn.mixture import mixture_of_states
from countvi.nn.spots import LEAST_ABUNDANCE, Amortised
from countvi.train import regress

if TYPE_CHECKING:
    from countvi.estimators.condscvi import CondSCVI
    from countvi.models.destvi import DestVI as DestVIModel

# Spots whose abundances are found at once.
_SPOTS = 4096
# A gene that the slide lacks throughout still has some noise.
_LEAST_NOISE = 1e-6
# Mixtures, each with the factors of genes that the one before it leaves, and the steps of each.
_ROUNDS = 3
_STEPS = 70
# Counts of a type in a spot that it takes for its states to leave their frequencies in the reference.
_CONCENTRATION = 50.0
# A gene needs more counts than this for a factor of its own. Sums of different cells by one assay differ too, by about
# this variance of the logarithm.
_FEW = 30.0
_OWN_VARIANCE = 0.05


class Teaching(NamedTuple):
    """How a network is taught."""

    abundance: Tensor
    """Of the types, shape ``(spots, types)``."""
    batch_size: int
    """Spots per step."""
    seed: int
    """Of their order, and of dropout."""


class MatchedGenes(NamedTuple):
    """Genes of a reference on a slide."""

    shared: np.ndarray
    """Columns of the reference that the slide has, int64."""
    missing: list[str]
    """Names of those that it lacks."""


def match_genes(sc_model: CondSCVI, slide: data_layer.Registry) -> MatchedGenes:
    """Match the genes of a reference and of a slide by name.

    Raises
    ------
    MismatchError
        If there are none in common.
    """
    names = sc_model.registry.modality(RNA).feature_names
    present = set(slide.modality(RNA).feature_names)
    shared = np.asarray([i for i, name in enumerate(names) if name in present], dtype=np.int64)
    missing = [name for name in names if name not in present]
    if not len(shared):
        message = (
            f"The slide has none of the reference's {len(names):,} genes. The reference knows {shorten(names, 3)}, the "
            f"slide {shorten(slide.modality(RNA).feature_names, 3)}; are these different kinds of names (symbols and "
            "Ensembl ids)?"
        )
        raise MismatchError(message)
    if missing:
        message = (
            f"{len(shared):,} of the reference's {len(names):,} genes are on the slide and are used; {len(missing):,} "
            f"are not: {shorten(missing)}. `missing_genes` of the model lists them."
        )
        warnings.warn(message, DataWarning, stacklevel=3)
    return MatchedGenes(shared, missing)


def reference_of(
    sc_model: CondSCVI, genes: np.ndarray, n_components: int | None, subcluster_key: str | None, seed: int
) -> Reference:
    """Take from a trained single-cell model what the spatial model needs.

    Parameters
    ----------
    sc_model
        The single-cell model.
    genes
        Its genes that the slide has.
    n_components
        Components per type of the prior; ``None`` for a unit normal.
    subcluster_key
        Column of ``obs`` with clusters to use as components.
    seed
        Of the clusters.
    """
    options = sc_model._options
    refuse_later_generation(options)
    if not sc_model.is_trained:
        message = "The reference is not trained yet. Call its train() first."
        raise NotTrainedError(message)
    n_types = len(sc_model.cell_types)
    if n_components is None:
        shape = (n_types, 1, options.n_latent)
        prior = (torch.zeros(shape), torch.ones(shape), torch.ones(shape[:2]))
    else:
        mixture = sc_model._vamp_mixture(None, n_components, subcluster_key, None, seed)
        prior = tuple(torch.from_numpy(part).float() for part in mixture)
    batches = torch.ones(sc_model.registry.batch.n_levels)
    if sc_model._data is not None:
        batches = torch.bincount(sc_model._data.codes[:, BATCH_COLUMN], minlength=len(batches)).float()
    index = torch.from_numpy(genes)
    return take_reference(sc_model.module.cpu(), options, index, prior, batches / batches.sum())


def given_abundances(given: pd.DataFrame | np.ndarray, spots: pd.Index, types: tuple[str, ...]) -> np.ndarray:
    """Return proportions that a user gives, spots and types matched by name where they have names.

    Raises
    ------
    MismatchError
        If spots or types are missing, or the shape is another.
    DataError
        If a value is negative or not finite, or a spot has none.
    """
    if isinstance(given, pd.DataFrame):
        missing = [str(name) for name in (*spots.difference(given.index), *set(types).difference(given.columns))]
        if missing:
            message = f"initial_proportions lacks spots or types of the model: {shorten(missing)}."
            raise MismatchError(message)
        given = given.loc[spots, list(types)].to_numpy()
    values = np.asarray(given, dtype=np.float64)
    if values.shape != (len(spots), len(types)):
        message = f"initial_proportions must have shape {(len(spots), len(types))}; got {values.shape}."
        raise MismatchError(message)
    if not np.isfinite(values).all() or (values < 0).any() or (values.sum(1) <= 0).any():
        message = "initial_proportions must be finite and not negative, with a positive sum in every spot."
        raise DataError(message)
    return values / values.sum(1, keepdims=True)


@torch.no_grad()
def start_of(
    data: data_layer.Dataset, reference: Reference, given: np.ndarray | None, sparsity: float = 0.0
) -> SpotStart:
    """Choose where the parameters of spots start.

    Abundances and states start at a sparse mixture of what the types express at the components of the prior of their
    states, factors of genes at what this leaves over; or abundances where the user says, states at the means of their
    priors. Noise starts at the mean of the slide.

    Parameters
    ----------
    data
        The slide.
    reference
        What is known of the types.
    given
        Proportions to start from, shape ``(spots, types)``; those at zero start a little above, from where they can
        rise.
    sparsity
        Counts that a type must explain to be in a spot.
    """
    observed = torch.zeros(len(reference.p_logits), dtype=torch.float64)
    for counts in _blocks(data):
        observed.index_add_(0, counts.columns, counts.values.double())
    noise = observed.float() / observed.sum().clamp(min=1.0) / reference.p_logits.exp()
    noise = noise.clamp(min=_LEAST_NOISE)
    if given is not None:
        abundance = torch.from_numpy(given).float().clamp(min=LEAST_ABUNDANCE)
        return SpotStart(abundance, noise, torch.zeros_like(noise), None)
    loc, _, weights = reference.prior
    profiles = state_profiles(reference)
    mixture = partial(
        mixture_of_states, weights=weights, sparsity=sparsity, concentration=_CONCENTRATION, n_steps=_STEPS
    )
    parts = [_even(counts, weights) for counts in _blocks(data)]
    log_alpha = torch.zeros_like(noise)
    for again in range(_ROUNDS):
        if again:
            expected = sum(part.double().sum(0).flatten() for part in parts) @ profiles.double().flatten(0, 1)
            log_alpha = gene_factors(observed, expected).float()
        adapted = profiles * log_alpha.exp()
        parts = [mixture(counts, adapted, start=part) for counts, part in zip(_blocks(data), parts, strict=True)]
    depth = torch.cat([counts.totals() for counts in _blocks(data)]).clamp(min=1.0)
    v = torch.cat(parts) / depth.view(-1, 1, 1)
    # So few counts that the penalty outweighs them all.
    v = torch.where(v.sum((-2, -1), keepdim=True) > 0, v, weights / len(weights))
    abundance = v.sum(-1)
    shares = torch.where(abundance.unsqueeze(-1) > 0, v / abundance.unsqueeze(-1), weights)
    return SpotStart(abundance, noise, log_alpha, torch.einsum("sck,ckl->scl", shares, loc))


def _blocks(data: data_layer.Dataset) -> Iterator[CountBlock]:
    """Yield the counts of some spots at a time."""
    for start in range(0, data.n_cells, _SPOTS):
        yield data.batch(np.arange(start, min(start + _SPOTS, data.n_cells))).counts[RNA]


def _even(counts: CountBlock, weights: Tensor) -> Tensor:
    """Abundances of types that have as many counts of a spot each, shape ``(spots, types, components)``."""
    return counts.totals().clamp(min=1.0).view(-1, 1, 1) * weights / len(weights)


def gene_factors(observed: Tensor, expected: Tensor) -> Tensor:
    r"""Log-ratios of observed and expected counts of genes, shrunk towards zero as far as they look like noise.

    .. math:: \log\alpha_g = \frac{\tau^2}{\tau^2 + \sigma_g^2}\, d_g, \qquad d_g = \log\frac{o_g + 30}{e_g + 30}, \quad
        \sigma_g^2 = \frac{1}{o_g + 1} + 0.05, \quad \tau^2 = \Big\langle d_g^2 - \frac{1}{o_g + 1} \Big\rangle_+

    Parameters
    ----------
    observed, expected
        Counts of the genes of the whole slide, shape ``(genes,)``; the expected ones are scaled to the same sum.
    """
    expected = expected * (observed.sum() / expected.sum().clamp(min=1.0))
    ratio = torch.log((observed + _FEW) / (expected + _FEW))
    sampling = 1.0 / (observed + 1.0)
    between = (ratio.square() - sampling).mean().clamp(min=0.0)
    return ratio * between / (between + sampling + _OWN_VARIANCE)


def state_profiles(reference: Reference) -> Tensor:
    """What each type expresses at the components of the prior of its states, shape ``(types, components, genes)``."""
    loc = reference.prior[0]
    n_types = len(loc)
    design = Design(torch.arange(n_types).unsqueeze(-1), loc.new_zeros(n_types, 0))
    hidden = reference.decode(loc.transpose(0, 1), None, design)
    shapes = functional.softplus(reference.f(hidden)) * reference.p_logits.exp()
    return shapes.transpose(0, 1).contiguous()


def teach_abundances(model: DestVIModel, data: data_layer.Dataset, split: data_layer.Split, request: Teaching) -> None:
    """Fit the network of the abundances to those that the model starts from; a network starts nowhere by itself.

    On the scale of square roots, as abundances are known to about the root of their counts.

    Parameters
    ----------
    model
        Whose abundances are given by a network.
    data
        The slide.
    split
        Its training spots are used.
    request
        How.
    """
    network = model.infer_beta
    assert isinstance(network, Amortised)

    def predict(batch: Batch) -> Tensor:
        return functional.softplus(network(batch.counts[RNA], batch.design)).sqrt()

    feed = DatasetFeed(data, split, request.batch_size, request.seed)
    regress(network, predict, with_noise(request.abundance).sqrt(), feed, request.seed)
