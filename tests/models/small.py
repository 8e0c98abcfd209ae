"""Small regularised models built from their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from countvi import seeding
from countvi.batch import Batch, CountBlock, Design, Factor
from countvi.models.regularized import ModalityModel, Regularized
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.initial_values import start_from_counts
from countvi.nn.joint import (
    CellWeights,
    Concatenated,
    EqualWeights,
    JointEncoder,
    SingleEncoder,
    UniversalWeights,
    WeightedMean,
)
from countvi.nn.library import LibraryPrior, ResidualLibrary
from countvi.nn.linear import CovariateFeatures
from countvi.nn.mlp import Mlp, MlpConfig
from countvi.nn.priors import GammaPrior
from countvi.nn.technical import Background, FeatureScaling, PosteriorDispersion

NOTHING = Factor(-1, 1)
"""What a covariate is that was not given: the last column of the codes of :class:`Cells`, all zero."""


@dataclass(frozen=True)
class Plan:
    """What a small model is made of; covariates as in :class:`ModalityModel` and :class:`Regularized`."""

    n_latent: int = 3
    n_hidden: int = 8
    library_hidden: int = 4
    ambient: Sequence[Factor] = ()
    background_prior: GammaPrior | None = None
    scaling: Sequence[Factor] | None = None
    dispersion: Factor | None = None
    group: Factor = NOTHING
    conditioning: Sequence[Factor] = ()
    encoding: Sequence[Factor] = ()
    n_continuous: int = 0
    dropout: float = 0.1
    share: float | None = None
    sensitivity: float = 1.0


@dataclass(frozen=True)
class Cells:
    """Dense counts by modality, codes (a column of zeros is added), and which cells were measured."""

    counts: Mapping[str, np.ndarray]
    codes: np.ndarray
    continuous: np.ndarray | None = None
    present: Mapping[str, np.ndarray] = field(default_factory=dict)

    def levels(self, factor: Factor) -> np.ndarray:
        """Codes of a covariate."""
        return np.pad(self.codes.astype(np.int64), ((0, 0), (0, 1)))[:, factor.column]

    def batch(self, rows: np.ndarray | slice = slice(None), dtype: torch.dtype = torch.float32) -> Batch:
        """Some of the cells."""
        codes = torch.as_tensor(np.pad(self.codes, ((0, 0), (0, 1)))[rows], dtype=torch.int64)
        continuous = np.zeros((len(self.codes), 0)) if self.continuous is None else self.continuous
        present = {name: torch.as_tensor(mask[rows]) for name, mask in self.present.items()}
        return Batch(
            counts={n: CountBlock.from_dense(torch.as_tensor(x[rows], dtype=dtype)) for n, x in self.counts.items()},
            design=Design(codes, torch.as_tensor(continuous[rows], dtype=dtype), present=present or None),
        )


def config(plan: Plan, n_hidden: int, dropout: float) -> MlpConfig:
    return MlpConfig(n_hidden=n_hidden, dropout=dropout, batch_norm=False, layer_norm=True, drop_input=True)


def encoder(plan: Plan, n_genes: int, n_out: int | None, n_hidden: int) -> GaussianEncoder:
    return GaussianEncoder(
        n_genes, n_out, config(plan, n_hidden, plan.dropout), n_features=plan.n_continuous, factors=plan.encoding
    )


def modality(plan: Plan, cells: Cells, name: str, n_state: int) -> ModalityModel:
    """One modality, started from its counts."""
    x = cells.counts[name]
    here = cells.present.get(name, np.ones(len(x), dtype=bool))
    totals, level = torch.as_tensor(x.sum(1)[here]), torch.as_tensor(cells.levels(plan.group)[here])
    prior = LibraryPrior.constrained(totals, level, plan.group.n_levels)
    log_unit = prior.centre - float(np.log(plan.sensitivity))
    background = Background(plan.ambient, x.shape[1], plan.background_prior) if plan.ambient else None
    part = ModalityModel(
        library=ResidualLibrary(encoder(plan, x.shape[1], None, plan.library_hidden), plan.group, prior),
        decode=Mlp(n_state, config(plan, plan.n_hidden, 0.0), plan.n_continuous, plan.conditioning),
        rho=nn.Linear(plan.n_hidden, x.shape[1]),
        dispersion=PosteriorDispersion(x.shape[1], plan.dispersion),
        log_unit=log_unit,
        background=background,
        scaling=None if plan.scaling is None else FeatureScaling(plan.scaling, x.shape[1]),
    )
    sums = [sums_by_level(x[here], cells.levels(f)[here], f.n_levels) for f in plan.ambient or [NOTHING]]
    start_from_counts(part.rho, background, sums, log_unit, plan.share)
    return part


def sums_by_level(x: np.ndarray, codes: np.ndarray, n_levels: int) -> Tensor:
    return torch.as_tensor(np.stack([x[codes == level].sum(0) for level in range(n_levels)]))


def joint(plan: Plan, cells: Cells, mode: str) -> JointEncoder:
    """``"concatenated"``, ``"single"``, or the weights of a weighted mean."""
    genes = {name: x.shape[1] for name, x in cells.counts.items()}
    if mode == "single":
        return SingleEncoder(tuple(genes), encoder(plan, sum(genes.values()), plan.n_latent, plan.n_hidden))
    encoders = {name: encoder(plan, n, plan.n_latent, plan.n_hidden) for name, n in genes.items()}
    if mode == "concatenated":
        return Concatenated(encoders)
    weights = {
        "equal": EqualWeights,
        "universal": lambda: UniversalWeights(len(genes)),
        "cell": lambda: CellWeights(len(genes), plan.n_latent),
    }
    return WeightedMean(encoders, weights[mode]())


def build(cells: Cells, plan: Plan | Mapping[str, Plan], mode: str = "concatenated", seed: int = 0):
    """A model of all modalities, each with its plan (the first one's for what they share)."""
    plans = {name: plan for name in cells.counts} if isinstance(plan, Plan) else plan
    first = next(iter(plans.values()))
    with seeding.forked(seed):
        encode_z = joint(first, cells, mode)
        parts = {name: modality(p, cells, name, encode_z.n_latent) for name, p in plans.items()}
        return Regularized(modalities=parts, encode_z=encode_z, covariates=CovariateFeatures(first.n_continuous))
