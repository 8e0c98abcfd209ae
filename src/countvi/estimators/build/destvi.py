"""Options of :class:`countvi.DestVI`, and how its module is assembled from them and from a single-cell model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from countvi.batch import RNA, Factor
from countvi.data import Registry
from countvi.errors import OptionError
from countvi.estimators.build.condscvi import CondSCVIOptions
from countvi.estimators.options import Rate, Weight, Whole, check
from countvi.models.condscvi import CondSCVI as CondSCVIModel
from countvi.models.destvi import DestVI as DestVIModel
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.initial_values import inverse_softplus
from countvi.nn.linear import CovariateFeatures, Head
from countvi.nn.mlp import Block, Mlp, MlpConfig
from countvi.nn.observation import ObserveMeanDispersion, ObserveRateShape
from countvi.nn.spots import AbundancePrior, Amortised, PerSpot, SpotParameter, VampPrior
from countvi.nn.state_priors import LearnedPrior, UnitPrior

# Which parameters of a spot a network gives: states, and abundances.
_AMORTISED = {"none": (False, False), "latent": (True, False), "proportion": (False, True), "both": (True, True)}
_AMORTISED_LAYERS = 2
_NOISE_ABUNDANCE = 1e-2
# Softplus gives zero for it in single precision, without a gradient: a type that is absent at the start stays so.
_ABSENT = -110.0


@dataclass(frozen=True)
class DestVIOptions:
    """The arguments of :class:`countvi.DestVI`, checked, and the sizes of the reference."""

    cell_types: Sequence[str]
    n_hidden: Whole
    n_latent: Whole
    n_layers: Whole
    n_components: Whole
    n_spots: Whole
    amortization: Literal["none", "latent", "proportion", "both"] = "none"
    l1_reg: Weight = 0.0
    beta_reg: Weight = 5.0
    eta_reg: Weight = 1e-4
    entropy_reg: Weight = 0.0
    gamma_reg: Weight = 1.0
    dropout_amortization: Rate = 0.05
    sparsity_reg: Weight = 0.0
    spots: Sequence[str] | None = None
    missing_genes: Sequence[str] = ()

    def __post_init__(self) -> None:
        check(self)

    @property
    def amortised(self) -> tuple[bool, bool]:
        """Whether a network gives the states, and the abundances."""
        return _AMORTISED[self.amortization]


class Reference(NamedTuple):
    """What the spatial model takes from the single-cell model; genes are those of the slide's model."""

    decode: Mlp
    """Layers of f, which see the type alone."""
    f: Head
    """Last layer of f."""
    p_logits: Tensor
    """Logits of p, shape ``(genes,)``."""
    prior: tuple[Tensor, Tensor, Tensor]
    """Means and standard deviations of the mixtures, ``(types, components, latent)``, and their weights."""


class SpotStart(NamedTuple):
    """Where the parameters of spots start."""

    abundance: Tensor
    """Of the types, shape ``(spots, types)``, in shares of the library."""
    noise: Tensor
    """Profile of the noise, shape ``(genes,)``, positive."""
    log_alpha: Tensor
    """Logarithms of the factors of genes, shape ``(genes,)``."""
    states: Tensor | None
    """Of the types, shape ``(spots, types, latent)``; ``None`` for the means of their priors."""


def empty_reference(options: DestVIOptions, n_genes: int) -> Reference:
    """Parts of the right shape, for saved weights."""
    n_types = len(options.cell_types)
    mixture = (n_types, options.n_components, options.n_latent)
    return Reference(
        decode=_frozen_decoder(options.n_hidden, options.n_latent, options.n_layers, n_types),
        f=Head(options.n_hidden, n_genes),
        p_logits=torch.zeros(n_genes),
        prior=(torch.zeros(mixture), torch.ones(mixture), torch.ones(mixture[:2])),
    )


def take_reference(
    model: CondSCVIModel, options: CondSCVIOptions, genes: Tensor, prior: tuple[Tensor, ...], batches: Tensor
) -> Reference:
    """Copy what the spatial model needs of a single-cell model.

    Parameters
    ----------
    model
        The single-cell model, of the generation of the paper.
    options
        What it was made with.
    genes
        Its genes that the slide has, shape ``(genes,)``, int64.
    prior
        Means, standard deviations and weights of the mixtures.
    batches
        Shares of the batches of the reference: a spot is in none of them, and takes their mean in each layer.
    """
    observe = model.observe
    assert isinstance(observe, ObserveRateShape)
    n_types = model.labels.n_levels
    decode = _frozen_decoder(options.n_hidden, options.n_latent, options.n_layers, n_types)
    f = Head(options.n_hidden, len(genes))
    with torch.no_grad():
        for mine, theirs in zip(_blocks(decode), _blocks(model.decode), strict=True):
            mine.linear.weight.copy_(theirs.linear.weight)
            mine.linear.bias.copy_(theirs.linear.bias)
            if theirs.linear.levels is None:
                continue
            # Types first, then batches; a covariate of one level has no rows.
            table, n_rows = theirs.linear.levels.weight, n_types if n_types > 1 else 0
            if mine.linear.levels is not None:
                mine.linear.levels.weight.copy_(table[:n_rows])
            if len(table) > n_rows:
                mine.linear.bias.add_(batches.to(table) @ table[n_rows:])
        f.weight.copy_(observe.f.weight[genes])
        f.bias.copy_(observe.f.bias[genes])
        loc, scale, weights = prior
        return Reference(decode, f, observe.p_logits[genes].clone(), (loc, scale, weights))


def build_destvi(options: DestVIOptions, reference: Reference, start: SpotStart | None) -> DestVIModel:
    """Assemble the model of :class:`countvi.DestVI`.

    Parameters
    ----------
    options
        What the user asked for.
    reference
        What is known from single cells.
    start
        Where to start from; ``None`` where saved weights will follow.
    """
    n_genes, n_types = len(reference.p_logits), len(options.cell_types)
    if start is None:
        start = SpotStart(torch.ones(options.n_spots, n_types), torch.ones(n_genes), torch.zeros(n_genes), None)
    prior = VampPrior(*reference.prior, power=options.gamma_reg)
    states = prior.mean().expand(options.n_spots, -1, -1) if start.states is None else start.states
    abundance = with_noise(start.abundance)
    config = MlpConfig(
        n_hidden=options.n_hidden,
        n_layers=_AMORTISED_LAYERS,
        dropout=options.dropout_amortization,
        batch_norm=False,
        layer_norm=True,
    )

    def parameter(amortised: bool, values: Tensor) -> SpotParameter:
        return Amortised(n_genes, tuple(values.shape[1:]), config) if amortised else PerSpot(values)

    amortised = options.amortised
    infer_gamma = parameter(amortised[0], states)
    if isinstance(infer_gamma, Amortised):
        infer_gamma.start_at(prior.mean())
    return DestVIModel(
        infer_gamma=infer_gamma,
        infer_beta=parameter(amortised[1], inverse_softplus(abundance).clamp(min=_ABSENT)),
        decode=reference.decode,
        f=reference.f,
        p_logits=reference.p_logits,
        prior_of_gamma=prior,
        prior_of_beta=AbundancePrior(options.l1_reg, options.entropy_reg, options.sparsity_reg),
        log_alpha=start.log_alpha,
        eta=inverse_softplus(start.noise),
        beta_reg=options.beta_reg,
        eta_reg=options.eta_reg,
    )


def with_noise(abundance: Tensor) -> Tensor:
    """Add a column of a little noise to abundances of types."""
    noise = abundance.new_full((len(abundance), 1), _NOISE_ABUNDANCE)
    return torch.cat([abundance, noise], -1)


def _frozen_decoder(n_hidden: int, n_latent: int, n_layers: int, n_types: int) -> Mlp:
    config = MlpConfig(n_hidden=n_hidden, n_layers=n_layers, batch_norm=False, layer_norm=True)
    return Mlp(n_latent, config, 0, (Factor(0, n_types),))


def _blocks(mlp: Mlp) -> list[Block]:
    return mlp._blocks()


def refuse_later_generation(options: CondSCVIOptions) -> None:
    """Refuse a reference whose counts do not add up.

    Raises
    ------
    OptionError
        If the reference is of the generation of scvi-tools 1.4.1 and later.
    """
    if options.generation != "rate-shape":
        message = (
            "This reference is of the generation of scvi-tools 1.4.1 and later, whose counts have one dispersion per "
            "gene and so do not add up over cells. Train a countvi.CondSCVI on the same cells, or load one that "
            "scvi-tools up to 1.4.0 saved."
        )
        raise OptionError(message)
