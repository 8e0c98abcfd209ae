"""Every configuration that the contract of models is checked on.

A model adds rows to :data:`ROWS`; ``test_contract.py`` runs all of them. A row says how to build the model and a
minibatch of its data, and how many parameters there are: counted by hand, so that a head nobody uses is noticed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import anndata
import numpy as np
import pandas as pd
from tests.models import cite, small

import countvi
from countvi.batch import Batch, Factor
from countvi.errors import DataWarning
from countvi.models.count_model import CountModel

N_CELLS, N_GENES, N_BATCHES, N_LABELS, N_DONORS = 24, 7, 3, 2, 4
N_HIDDEN, N_LATENT = 8, 3


@dataclass(frozen=True)
class Row:
    """One configuration.

    Parameters
    ----------
    name
        Shown by pytest.
    build
        From a seed to the model and a minibatch of all cells.
    n_parameters
        How many numbers are learned.
    batch_matters
        Whether a counterfactual batch changes the expected frequencies.
    not_drawn
        Last parts of the names of parameters that start from the data or a constant, whatever the seed.
    """

    name: str
    build: Callable[[int], tuple[CountModel, Batch]]
    n_parameters: int
    batch_matters: bool = True
    not_drawn: frozenset[str] = frozenset()


@cache
def cells() -> anndata.AnnData:
    """Counts with covariates of every kind: one empty cell, one gene that is zero throughout."""
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(1.0, 3.0, size=(N_CELLS, N_GENES))).astype(np.float32)
    x[4] = 0.0
    x[:, 2] = 0.0
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical([f"b{i % N_BATCHES}" for i in range(N_CELLS)]),
            "label": pd.Categorical([f"l{i // 3 % N_LABELS}" for i in range(N_CELLS)]),
            "donor": pd.Categorical([f"d{i // 5 % N_DONORS}" for i in range(N_CELLS)]),
            "age": rng.normal(size=N_CELLS),
            "stress": rng.normal(size=N_CELLS),
            "factor": rng.gamma(5.0, 0.3, N_CELLS),
        },
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)]))


def _build_scvi(options: dict[str, Any], keys: dict[str, Any], seed: int) -> tuple[CountModel, Batch]:
    adata = cells().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        countvi.SCVI.setup_anndata(adata, **keys)
        model = countvi.SCVI(adata, n_hidden=N_HIDDEN, n_latent=N_LATENT, seed=seed, **options)
    return model.module, model.dataset.batch(np.arange(N_CELLS))


def _count_scvi(options: dict[str, Any], keys: dict[str, Any]) -> int:
    """Number of learned numbers, from the paper's description and the options."""
    n_layers = options.get("n_layers", 1)
    batch_levels = N_BATCHES if "batch_key" in keys else 0
    donor_levels = N_DONORS * len(keys.get("categorical_covariate_keys", ()))
    n_features = len(keys.get("continuous_covariate_keys", ()))
    n_levels = batch_levels + donor_levels
    n_embedding = 0
    if options.get("batch_representation") == "embedding":
        n_levels, n_features, n_embedding = donor_levels, n_features + 5, 5 * max(batch_levels, 1)
    normed = {"both": (1, 1), "encoder": (1, 0), "decoder": (0, 1), "none": (0, 0)}[
        options.get("use_batch_norm", "both")
    ]
    deep = n_levels if options.get("deeply_inject_covariates", True) else 0

    def trunk(n_in: int, layers: int, norm: int, covariates: bool) -> int:
        first = n_in + covariates * (n_levels + n_features) + 1
        others = N_HIDDEN + covariates * deep + 1
        return N_HIDDEN * (first + (layers - 1) * others + 2 * norm * layers)

    def head(n_out: int) -> int:
        return n_out * (N_HIDDEN + 1)

    encode = options.get("encode_covariates", False)
    n = n_embedding + trunk(N_GENES, n_layers, normed[0], encode) + 2 * head(N_LATENT)
    n += trunk(N_LATENT, n_layers, normed[1], True) + head(N_GENES)
    if not options.get("use_observed_lib_size", True) and "size_factor_key" not in keys:
        n += trunk(N_GENES, 1, normed[0], encode) + 2 * head(1)
    likelihood, dispersion = options.get("gene_likelihood", "zinb"), options.get("dispersion", "gene")
    n += head(N_GENES) if likelihood == "zinb" else 0
    if likelihood == "poisson":
        return n
    return (
        n
        + {
            "gene": N_GENES,
            "gene-batch": N_GENES * max(batch_levels, 1),
            "gene-label": N_GENES * (N_LABELS if "labels_key" in keys else 1),
            "gene-cell": head(N_GENES),
        }[dispersion]
    )


_BATCH = {"batch_key": "batch", "labels_key": "label"}
_ALL = {**_BATCH, "categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age", "stress"]}
_SIZED = {**_ALL, "size_factor_key": "factor"}
_LATENT = {"use_observed_lib_size": False}
_DEEP = {"n_layers": 2, "encode_covariates": True}


def _grid() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    spreads = ("gene", "gene-batch", "gene-label", "gene-cell")
    grid = [({"gene_likelihood": y, "dispersion": d}, _BATCH) for y in ("zinb", "nb", "normal") for d in spreads]
    grid += [({"gene_likelihood": "poisson"}, _BATCH)]
    for likelihood in ("zinb", "nb", "poisson", "normal"):
        for keys, library in ((_ALL, {}), (_ALL, _LATENT), (_SIZED, {}), (_SIZED, _LATENT)):
            grid.append(({"gene_likelihood": likelihood, **library, **_DEEP}, keys))
    one_by_one = (
        {"latent_distribution": "ln"},
        {"latent_distribution": "ln", **_LATENT, **_DEEP},
        {"batch_representation": "embedding"},
        {"batch_representation": "embedding", **_LATENT, **_DEEP},
        {"deeply_inject_covariates": False, **_DEEP},
        {"n_layers": 3, **_LATENT},
        {"log_variational": False},
        {"dropout_rate": 0.0},
        *({"use_batch_norm": norm, **_LATENT, **_DEEP} for norm in ("encoder", "decoder", "none")),
        *({"use_layer_norm": norm, **_DEEP} for norm in ("encoder", "decoder", "both")),
        {"use_layer_norm": "both", "use_batch_norm": "none", **_LATENT},
        {"dispersion": "gene-cell", "latent_distribution": "ln", "batch_representation": "embedding", **_LATENT},
    )
    grid += [(options, _ALL) for options in one_by_one]
    # Nothing known about the cells, where every covariate has a single level.
    grid += [({"dispersion": d, **library}, {}) for d in spreads for library in ({}, _LATENT)]
    # The vector of the only batch is a constant, which batch normalisation would subtract again.
    lone = {"batch_representation": "embedding", "encode_covariates": True, "use_batch_norm": "none"}
    return [*grid, (lone, {})]


def _scvi(options: dict[str, Any], keys: dict[str, Any]) -> Row:
    words = [str(v) if isinstance(v, str) else f"{k}={v}" for k, v in options.items()]
    known = {id(_BATCH): "batch", id(_ALL): "all", id(_SIZED): "sized"}.get(id(keys), "bare")
    return Row(
        name=f"scvi-{known}-{','.join(words)}",
        build=partial(_build_scvi, options, keys),
        n_parameters=_count_scvi(options, keys),
        batch_matters="batch_key" in keys,
    )


N_PEAKS = 5


@cache
def small_cells(names: tuple[str, ...], gaps: bool) -> small.Cells:
    """The counts above as one or two modalities; codes of batch and donor; every third cell may lack the second."""
    adata = cells()
    rng = np.random.default_rng(1)
    counts = {"rna": np.asarray(adata.X), "atac": rng.poisson(2.0, (N_CELLS, N_PEAKS)).astype(np.float32)}
    present = {}
    if gaps:
        present["atac"] = np.arange(N_CELLS) % 3 != 1
        counts["atac"][~present["atac"]] = 0.0
    codes = np.stack([adata.obs[key].cat.codes.to_numpy() for key in ("batch", "donor")], axis=1)
    continuous = adata.obs[["age", "stress"]].to_numpy()
    return small.Cells({name: counts[name] for name in names}, codes, continuous, present)


def _build_regularized(
    plan: small.Plan, names: tuple[str, ...], mode: str, gaps: bool, seed: int
) -> tuple[CountModel, Batch]:
    data = small_cells(names, gaps)
    model = small.build(data, plan, mode, seed)
    return model, data.batch()


def _count_regularized(plan: small.Plan, names: tuple[str, ...], mode: str) -> int:
    """Number of learned numbers, from the equations."""
    genes = {"rna": N_GENES, "atac": N_PEAKS}

    def rows(factors: Sequence[Factor]) -> int:
        return sum(factor.n_levels for factor in factors if factor.n_levels > 1)

    def encoder(n_in: int, n_hidden: int, n_out: int) -> int:
        n_in += plan.n_continuous + rows(plan.encoding) + 1
        return n_hidden * n_in + 2 * n_out * (n_hidden + 1)

    sizes = [genes[name] for name in names]
    inputs = [sum(sizes)] if mode == "single" else sizes
    n = sum(encoder(n_in, plan.n_hidden, plan.n_latent) for n_in in inputs)
    n += {"universal": len(names), "cell": len(names) * (len(names) * plan.n_latent + 1)}.get(mode, 0)
    n_state = plan.n_latent * (len(names) if mode == "concatenated" else 1)
    for n_genes in sizes:
        n += encoder(n_genes, plan.library_hidden, 1) + 1
        n += plan.n_hidden * (n_state + plan.n_continuous + rows(plan.conditioning) + 1) + n_genes * (plan.n_hidden + 1)
        n += n_genes * sum(factor.n_levels for factor in plan.ambient)
        if plan.scaling is not None:
            n += n_genes * max(1, sum(factor.n_levels for factor in plan.scaling))
        n += 2 * n_genes * (1 if plan.dispersion is None else plan.dispersion.n_levels)
    return n


_BATCH_FACTOR, _DONOR_FACTOR = Factor(0, N_BATCHES), Factor(1, N_DONORS)
_FULL = small.Plan(
    ambient=[_BATCH_FACTOR, _DONOR_FACTOR],
    background_prior=small.GammaPrior(1.0, 100.0),
    scaling=[_DONOR_FACTOR, _BATCH_FACTOR],
    dispersion=_BATCH_FACTOR,
    group=_DONOR_FACTOR,
    conditioning=[_DONOR_FACTOR, _BATCH_FACTOR],
    encoding=[_BATCH_FACTOR],
    n_continuous=2,
)
_PLANS = {
    "bare": small.Plan(),
    "batch": small.Plan(ambient=[_BATCH_FACTOR], dispersion=_BATCH_FACTOR, group=_BATCH_FACTOR),
    "scaled": small.Plan(ambient=[small.NOTHING], scaling=[], conditioning=[_BATCH_FACTOR]),
    "full": _FULL,
}


def _regularized(name: str, names: tuple[str, ...], mode: str = "concatenated", gaps: bool = False) -> Row:
    plan = _PLANS[name]
    return Row(
        name=f"regularized-{name}-{'+'.join(names)}-{mode}{'-gaps' if gaps else ''}",
        build=partial(_build_regularized, plan, names, mode, gaps),
        n_parameters=_count_regularized(plan, names, mode),
        batch_matters=_BATCH_FACTOR in plan.conditioning,
        not_drawn=_NOT_DRAWN,
    )


_NOT_DRAWN = frozenset(
    {"beta", "gamma", "library.weight", "library.encode.loc.bias", "library.encode.log_variance.bias", "rho.bias"}
    | {"dispersion.loc", "dispersion.log_scale", "weigh.logits"}
)
_TWO = ("rna", "atac")
_REGULARIZED = [
    *(_regularized(name, ("rna",)) for name in _PLANS),
    *(_regularized("full", ("rna",), mode) for mode in ("single", "equal")),
    *(
        _regularized(name, _TWO, mode, gaps)
        for name, gaps in (("batch", False), ("full", False), ("full", True))
        for mode in ("concatenated", "single", "equal", "universal", "cell")
    ),
]


_STATES, _SHARES, _SPOTS = ("both", "latent"), ("both", "proportion"), N_CELLS


def _build_condscvi(options: dict[str, Any], keys: dict[str, Any], seed: int) -> tuple[CountModel, Batch]:
    adata = cells().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        countvi.CondSCVI.setup_anndata(adata, **keys)
        registry = countvi.CondSCVI._registry_of(adata)
        arguments = {"n_hidden": N_HIDDEN, "n_latent": N_LATENT, **options}
        model = countvi.CondSCVI.restore(adata, registry, arguments, seed)
    return model.module, model.dataset.batch(np.arange(N_CELLS))


def _count_condscvi(options: dict[str, Any], keys: dict[str, Any]) -> int:
    """Number of learned numbers, from the equations."""
    labels = N_LABELS if "labels_key" in keys else 0
    batches = N_BATCHES if "batch_key" in keys else 0
    later, n_layers = options.get("generation") == "mean-dispersion", options.get("n_layers", 2)
    columns, vector = (0, 5) if later else (batches, 0)

    def trunk(n_in: int, batch: bool) -> int:
        first = n_in + vector * batch + labels + columns * batch + 1
        return N_HIDDEN * (first + (n_layers - 1) * (N_HIDDEN + labels + columns * batch + 1))

    n = trunk(N_GENES, options.get("encode_covariates", False)) + 2 * N_LATENT * (N_HIDDEN + 1)
    n += trunk(N_LATENT, True) + N_GENES * (N_HIDDEN + 1) + N_GENES
    if later:
        n += 5 * max(batches, 1) + N_GENES * max(labels, 1)
    if options.get("prior") == "mog":
        n += max(labels, 1) * options["num_classes_mog"] * (2 * N_LATENT + 1)
    return n


def _condscvi(options: dict[str, Any], keys: dict[str, Any]) -> Row:
    words = [str(v) if isinstance(v, str) else f"{k}={v}" for k, v in options.items()]
    return Row(
        name=f"condscvi-{'+'.join(keys) or 'bare'}-{','.join(words)}",
        build=partial(_build_condscvi, options, keys),
        n_parameters=_count_condscvi(options, keys),
        batch_matters="batch_key" in keys,
        not_drawn=frozenset({"label_bias", "log_scale", "prior_of_state.logits", "f.bias", "p_logits"}),
    )


@cache
def reference(keys: tuple[str, ...]) -> countvi.CondSCVI:
    """A single-cell model on the cells above, hardly trained."""
    adata = cells()[np.arange(N_CELLS) != 4].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        countvi.CondSCVI.setup_anndata(adata, **{key: _BATCH[key] for key in keys})
        model = countvi.CondSCVI(adata, n_hidden=N_HIDDEN, n_latent=N_LATENT)
        model.train(1, enable_progress_bar=False)
    return model


def _build_destvi(options: dict[str, Any], keys: tuple[str, ...], seed: int) -> tuple[CountModel, Batch]:
    slide = cells().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        countvi.DestVI.setup_anndata(slide)
        model = countvi.DestVI.from_rna_model(slide, reference(keys), seed=seed, **options)
    return model.module, model.dataset.batch(np.arange(N_CELLS))


def _destvi(options: dict[str, Any], keys: tuple[str, ...] = ("labels_key",)) -> Row:
    n_types, how = N_LABELS if keys else 1, options.get("amortization", "none")
    n = 2 * N_GENES
    for names, size in ((_STATES, n_types * N_LATENT), (_SHARES, n_types + 1)):
        network = N_HIDDEN * (N_GENES + 1) + N_HIDDEN * (N_HIDDEN + 1) + size * (N_HIDDEN + 1)
        n += network if how in names else _SPOTS * size
    words = [str(v) if isinstance(v, str) else f"{k}={v}" for k, v in options.items()]
    return Row(
        name=f"destvi-{'+'.join(keys) or 'bare'}-{','.join(words)}",
        build=partial(_build_destvi, options, keys),
        n_parameters=n,
        batch_matters=False,
        not_drawn=frozenset({"log_alpha", "eta", "table", "infer_gamma.out.bias"}),
    )


_LATER = {"generation": "mean-dispersion"}
_DECONVOLUTION = [
    _condscvi({}, {}),
    _condscvi({}, {"labels_key": "label"}),
    _condscvi({"weight_obs": True, "encode_covariates": True}, _BATCH),
    _condscvi({"n_layers": 1, "log_variational": False, "dropout_rate": 0.0}, _BATCH),
    _condscvi(_LATER, _BATCH),
    _condscvi({**_LATER, "prior": "mog", "num_classes_mog": 4, "encode_covariates": True}, _BATCH),
    *(_destvi({"amortization": how}) for how in ("none", "latent", "proportion", "both")),
    _destvi({"vamp_prior_p": 2, "l1_reg": 3.0, "entropy_reg": 2.0, "gamma_reg": 0.5}, ("labels_key", "batch_key")),
    _destvi({"vamp_prior_p": None, "amortization": "both"}, ()),
]

_TOTALVI = [
    ({}, _BATCH, False),
    ({}, _BATCH, True),
    ({}, {}, False),
    ({"protein_batch_efficiency": True, "protein_dispersion": "protein-batch"}, _ALL, True),
    ({"gene_likelihood": "zinb", "gene_dispersion": "gene-batch", **_LATENT}, _ALL, True),
    (
        {"gene_dispersion": "gene-label", "protein_dispersion": "protein-label", "latent_distribution": "ln"},
        _ALL,
        False,
    ),
    (
        {"gene_likelihood": "zinb", "gene_dispersion": "gene-cell", "n_layers_decoder": 2, "n_layers_encoder": 1},
        _ALL,
        True,
    ),
    ({"use_batch_norm": "none", "use_layer_norm": "both", "activation_function_bg": "exp", **_LATENT}, _SIZED, True),
    ({"encode_covariates": False, "normalize_encoder_input": False, "log_variational": False}, _ALL, True),
    ({"empirical_protein_background_prior": True}, {"batch_key": "batch", "panel_key": "donor"}, True),
]


_STARTED_FROM_COUNTS = {f"protein.{head}.bias" for head in ("loc", "scale", "alpha", "pi")}


def _totalvi(options: dict[str, Any], keys: dict[str, Any], gaps: bool) -> Row:
    words = [str(v) if isinstance(v, str) else f"{k}={v}" for k, v in options.items()]
    levels = [N_BATCHES if "batch_key" in keys else 1] + [N_DONORS] * len(keys.get("categorical_covariate_keys", ()))
    n_labels = N_LABELS if "labels_key" in keys else 1
    return Row(
        name=f"totalvi-{','.join(words)}-{'gaps' if gaps else 'whole'}",
        build=lambda seed: cite.build(cells(), options, keys, gaps, seed),
        n_parameters=cite.count(N_GENES, levels, options, keys, n_labels),
        batch_matters="batch_key" in keys,
        not_drawn=frozenset({"prior.loc", "prior.log_scale", "log_efficiency", *_STARTED_FROM_COUNTS}),
    )


ROWS = [_scvi(options, keys) for options, keys in _grid()] + _REGULARIZED + _DECONVOLUTION
ROWS += [_totalvi(*row) for row in _TOTALVI]
"""Add the rows of further models here."""
