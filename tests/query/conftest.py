"""A small SCVI built by hand from its parts, and its decoder written a second time in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from countvi import seeding
from countvi.batch import RNA, Batch, CountBlock, Design, Factor
from countvi.likelihoods.negative_binomial import NegativeBinomial
from countvi.likelihoods.normal import Normal
from countvi.likelihoods.poisson import Poisson
from countvi.likelihoods.zero_inflated import ZeroInflatedNegativeBinomial
from countvi.models.scvi import SCVI
from countvi.nn import observation
from countvi.nn.encoder import GaussianEncoder, Softmax
from countvi.nn.library import LogNormalLibrary, ObservedLibrary, SizeFactorLibrary
from countvi.nn.linear import CovariateFeatures, head
from countvi.nn.mlp import BatchNorm, Mlp, MlpConfig
from countvi.ops import Link
from countvi.query import Cells

N_BATCHES = 3
BATCH = Factor(0, N_BATCHES)
N_HIDDEN = 5


@dataclass
class ArraySource:
    """Cells from dense arrays; remembers what it was asked for."""

    x: np.ndarray
    codes: np.ndarray
    size_factor: np.ndarray | None = None
    dtype: torch.dtype = torch.float32
    requests: list[np.ndarray] = field(default_factory=list)

    @property
    def n_cells(self) -> int:
        return len(self.x)

    def batch(self, rows: np.ndarray) -> Batch:
        self.requests.append(np.asarray(rows))
        counts = CountBlock.from_dense(torch.as_tensor(self.x[rows], dtype=self.dtype))
        factor = None if self.size_factor is None else torch.as_tensor(self.size_factor[rows], dtype=self.dtype)
        codes = torch.as_tensor(self.codes[rows], dtype=torch.int64)
        continuous = torch.zeros(len(rows), 0, dtype=self.dtype)
        return Batch(counts={RNA: counts}, design=Design(codes=codes, continuous=continuous, size_factor=factor))


def make_source(n_cells: int, n_genes: int, *, size_factor: bool = False, depth: float = 4.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(2.0, depth / 2.0, size=(n_cells, n_genes))).astype(float)
    codes = rng.integers(0, N_BATCHES, size=(n_cells, 1))
    return ArraySource(x, codes, rng.gamma(5.0, 0.3, n_cells) if size_factor else None)


def make_cells(source: ArraySource, chunk: int = 7, rows: np.ndarray | None = None) -> Cells:
    return Cells(source, np.arange(source.n_cells) if rows is None else rows, chunk)


def _observation(likelihood: str, dispersion: str, n_genes: int) -> nn.Module:
    spread = {
        "gene": lambda: observation.PerGene(n_genes),
        "gene-batch": lambda: observation.PerGeneLevel(n_genes, BATCH),
        "gene-cell": lambda: observation.PerGeneCell(N_HIDDEN, n_genes),
    }[dispersion]
    if likelihood == "nb":
        return observation.Observation(NegativeBinomial, log_theta=spread())
    if likelihood == "zinb":
        parts = {"log_theta": spread(), "pi_logits": head(N_HIDDEN, n_genes)}
        return observation.Observation(ZeroInflatedNegativeBinomial, **parts)
    if likelihood == "poisson":
        return observation.Observation(Poisson)
    return observation.Observation(Normal, log_scale=spread())


def make_model(
    n_genes: int = 6,
    n_latent: int = 2,
    *,
    likelihood: str = "nb",
    dispersion: str = "gene",
    library: str = "observed",
    logistic: bool = False,
    seed: int = 0,
) -> SCVI:
    """Build a model whose decoder depends visibly on z and on the batch. It is left in training mode."""
    with seeding.forked(seed):
        config = MlpConfig(n_hidden=N_HIDDEN, dropout=0.2)
        libraries = {
            "observed": ObservedLibrary,
            "given": SizeFactorLibrary,
            "latent": lambda: LogNormalLibrary(
                GaussianEncoder(n_genes, None, config),
                BATCH,
                torch.tensor([3.0, 3.2, 2.8]),
                torch.tensor([0.3, 0.4, 0.5]),
            ),
        }
        model = SCVI(
            n_latent=n_latent,
            covariates=CovariateFeatures(0),
            encode_z=GaussianEncoder(n_genes, n_latent, config),
            encode_covariates=False,
            library=libraries[library](),
            to_state=Softmax() if logistic else nn.Identity(),
            decode=Mlp(n_latent, MlpConfig(n_hidden=N_HIDDEN), 0, [BATCH]),
            rho=nn.Linear(N_HIDDEN, n_genes),
            link=Link.SOFTPLUS if library == "given" else Link.SOFTMAX,
            observe=_observation(likelihood, dispersion, n_genes),
        )
        with torch.no_grad():
            model.decode.layers[0].linear.weight.normal_(0.0, 1.0)
            model.decode.layers[0].linear.levels.weight.normal_(0.0, 1.0)
            model.rho.weight.normal_(0.0, 0.7)
            if library == "latent":
                model.library.encode.loc.bias.fill_(3.0)
                model.library.encode.log_variance.bias.fill_(-1.5)
            for module in model.modules():
                if isinstance(module, BatchNorm):
                    module.running_mean.normal_(0.0, 0.3)
                    module.running_var.uniform_(0.5, 1.5)
    return model.train()


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _hidden(model: SCVI, z: np.ndarray, batch: np.ndarray) -> np.ndarray:
    block = model.decode.layers[0]
    h = z @ _array(block.linear.weight).T + _array(block.linear.bias) + _array(block.linear.levels.weight)[batch]
    norm = block.batch_norm
    h = (h - _array(norm.running_mean)) / np.sqrt(_array(norm.running_var) + norm.eps)
    return np.maximum(h * _array(norm.weight) + _array(norm.bias), 0.0)


def _frequencies(model: SCVI, z: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Expected frequencies from z before any softmax, ``(*samples, cells, genes)``."""
    if isinstance(model.to_state, Softmax):
        z = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    logits = _hidden(model, z, batch) @ _array(model.rho.weight).T + _array(model.rho.bias)
    if model.link is Link.SOFTPLUS:
        return np.log1p(np.exp(logits))
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def _theta(model: SCVI) -> np.ndarray:
    return np.exp(_array(model.observe.log_theta.value))


def _posterior(model: SCVI, source: ArraySource) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of q(z), in NumPy."""
    return _encode(model.encode_z, source.x)


def _encode(encoder: GaussianEncoder, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    block = encoder.mlp.layers[0]
    h = np.log1p(x) @ _array(block.linear.weight).T + _array(block.linear.bias)
    norm = block.batch_norm
    h = (h - _array(norm.running_mean)) / np.sqrt(_array(norm.running_var) + norm.eps)
    h = np.maximum(h * _array(norm.weight) + _array(norm.bias), 0.0)
    loc = h @ _array(encoder.loc.weight).T + _array(encoder.loc.bias)
    return loc, np.exp(h @ _array(encoder.log_variance.weight).T + _array(encoder.log_variance.bias)) + 1e-4


def _log_nb(x: np.ndarray, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return stats.nbinom.logpmf(x, theta, theta / (theta + mu))


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Builders of the model and of cells."""
    return SimpleNamespace(model=make_model, source=make_source, cells=make_cells, n_batches=N_BATCHES)


@pytest.fixture(scope="session")
def witness() -> SimpleNamespace:
    """The model's formulas in NumPy."""
    return SimpleNamespace(
        frequencies=_frequencies, hidden=_hidden, theta=_theta, posterior=_posterior, encode=_encode, log_nb=_log_nb
    )


@pytest.fixture
def no_computing(monkeypatch: pytest.MonkeyPatch) -> Callable[[SCVI], None]:
    """Make a model refuse to compute."""

    def forbid(model: SCVI) -> None:
        def refuse(*_: object) -> None:
            message = "computed before checking"
            raise AssertionError(message)

        monkeypatch.setattr(model, "guide", refuse)

    return forbid
