"""Options of :class:`countvi.CondSCVI`, and how its module is assembled from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from countvi.batch import RNA
from countvi.data import LABELS_COLUMN, Dataset, Registry, RolesOf, variance_ratio
from countvi.estimators.options import Rate, Whole, check
from countvi.models.condscvi import CondSCVI as CondSCVIModel
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.linear import CovariateFeatures
from countvi.nn.mlp import Mlp, MlpConfig
from countvi.nn.observation import ObserveMeanDispersion, ObserveRateShape
from countvi.nn.initial_values import start_shapes
from countvi.nn.state_priors import LearnedPrior, UnitPrior

ROLES: RolesOf = {"batch_key": ("batch",), "labels_key": ("labels",)}
"""What the columns of a set-up are for."""
# A rare type counts at most as if it were this share of the cells.
_LEAST_SHARE = 0.05


@dataclass(frozen=True)
class CondSCVIOptions:
    """The arguments of :class:`countvi.CondSCVI`, checked; the last three are those of files of scvi-tools."""

    n_hidden: Whole = 128
    n_latent: Whole = 5
    n_layers: Whole = 2
    weight_obs: bool = False
    dropout_rate: Rate = 0.05
    log_variational: bool = True
    encode_covariates: bool = False
    generation: Literal["rate-shape", "mean-dispersion"] = "rate-shape"
    prior: Literal["normal", "mog"] = "normal"
    num_classes_mog: Whole = 10

    def __post_init__(self) -> None:
        check(self)


def build_condscvi(options: CondSCVIOptions, registry: Registry, dataset: Dataset | None) -> CondSCVIModel:
    """Assemble the model of :class:`countvi.CondSCVI`.

    Parameters
    ----------
    options
        What the user asked for.
    registry
        Genes and covariates.
    dataset
        Cells to start from; ``None`` where saved weights will follow.
    """
    weight = torch.ones(registry.labels.n_levels) if options.weight_obs else None
    if weight is not None and dataset is not None:
        weight = _weights(dataset.codes[:, LABELS_COLUMN], len(weight))
    model = _assembled(options, registry, weight)
    if dataset is not None and isinstance(model.observe, ObserveRateShape):
        totals = torch.from_numpy(dataset.summary(RNA).feature_totals)
        start_shapes(model.observe, totals, variance_ratio(dataset, RNA, LABELS_COLUMN))
    return model


def _assembled(options: CondSCVIOptions, registry: Registry, label_weight: Tensor | None) -> CondSCVIModel:
    """Assemble the parts; ``label_weight``: what a cell of each type counts, shape ``(types,)``."""
    n_genes = registry.modality(RNA).n_features
    paper = options.generation == "rate-shape"
    # The later generation has a vector per batch, even for a single one, in place of one-hot columns.
    covariates = CovariateFeatures(0, None if paper else registry.batch)
    factors = (registry.labels, registry.batch) if paper else (registry.labels,)
    config = MlpConfig(
        n_hidden=options.n_hidden,
        n_layers=options.n_layers,
        dropout=options.dropout_rate,
        batch_norm=False,
        layer_norm=True,
    )
    encode = GaussianEncoder(
        n_genes,
        options.n_latent,
        config,
        log1p=options.log_variational,
        n_features=covariates.n_features if options.encode_covariates else 0,
        factors=factors if options.encode_covariates else factors[:1],
    )
    return CondSCVIModel(
        encode=encode,
        encode_covariates=options.encode_covariates,
        decode=Mlp(options.n_latent, config, covariates.n_features, factors),
        observe=ObserveRateShape(options.n_hidden, n_genes)
        if paper
        else ObserveMeanDispersion(options.n_hidden, n_genes, registry.labels),
        covariates=covariates,
        prior_of_state=UnitPrior(options.n_latent)
        if options.prior == "normal"
        else LearnedPrior(registry.labels, options.num_classes_mog, options.n_latent),
        labels=registry.labels,
        label_weight=label_weight,
    )


def _weights(labels: Tensor, n_types: int) -> Tensor:
    """What a cell of each type counts: one over the share of its type, one on average."""
    sizes = torch.bincount(labels, minlength=n_types).float()
    share = (sizes / sizes.sum()).clamp(min=_LEAST_SHARE)
    weight = share.sum() / share
    return weight * sizes.sum() / (weight * sizes).sum()
