"""The single-cell model of Lopez et al. (2022), scLVM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor

from countvi.batch import RNA, Batch, Design, Factor
from countvi.likelihoods.base import CountLikelihood
from countvi.models.count_model import CountModel
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.library import ObservedLibrary
from countvi.nn.linear import CovariateFeatures
from countvi.nn.mlp import Mlp
from countvi.nn.observation import CountsGivenState
from countvi.nn.state_priors import StatePrior
from countvi.typing import CellsLatent

T = TypeVar("T")


class Latents(NamedTuple, Generic[T]):
    """The latent variables of a cell: their distributions, or their values."""

    gamma: T
    log_library: T


class CondSCVI(CountModel):
    r"""Counts of a cell given its type: continuous states within types.

    .. math::

        \gamma_n &\sim \mathrm{Normal}(0, I) && \text{state within the type} \\
        x_{ng} &\sim \mathrm{NegativeBinomial}(\ell_n f^g(c_n, \gamma_n, s_n), p_g) && \text{by shape and probability}

    with the type c, the batch s, the library size l (the total count), and the guide
    :math:`q(\gamma_n \mid x_n, c_n)`. Every layer of f and of the guide sees the type.

    Parameters
    ----------
    encode
        :math:`q(\gamma \mid x, c)`.
    encode_covariates
        Whether the guide sees the covariate features.
    decode
        The layers of f.
    observe
        The last layer of f, and p.
    covariates
        Batch embedding, as features of a cell; the generation of the paper has none.
    prior_of_state
        Prior of gamma.
    labels
        The type.
    label_weight
        What a cell of each type counts in training, shape ``(types,)``, or ``None`` for one each.

    References
    ----------
    Lopez, Li, Keren-Shaul, Boyeau, Kedmi, Pilzer, Jelinski, et al. DestVI identifies continuums of cell types in
    spatial transcriptomics data. Nature Biotechnology 40, 1360-1369 (2022), Methods.
    """

    annealed: ClassVar[frozenset[str]] = frozenset({"gamma"})
    state: ClassVar[str] = "gamma"
    label_weight: Tensor | None

    def __init__(
        self,
        *,
        encode: GaussianEncoder,
        encode_covariates: bool,
        decode: Mlp,
        observe: CountsGivenState,
        covariates: CovariateFeatures,
        prior_of_state: StatePrior,
        labels: Factor,
        label_weight: Tensor | None,
    ) -> None:
        super().__init__()
        self.encode = encode
        self.encode_covariates = encode_covariates
        self.library = ObservedLibrary()
        self.decode = decode
        self.observe = observe
        self.covariates = covariates
        self.prior_of_state = prior_of_state
        self.labels = labels
        self.register_buffer("label_weight", label_weight)

    def guide(self, batch: Batch) -> Latents[Any]:
        """q(gamma | x, c)."""
        x, design = batch.counts[RNA], batch.design
        features = self.covariates(design) if self.encode_covariates else None
        return Latents(gamma=self.encode(x, features, design), log_library=self.library.guide(x, features, design))

    def prior(self, design: Design) -> Latents[Any]:
        """p(gamma)."""
        return Latents(gamma=self.prior_of_state(design), log_library=self.library.prior(design))

    def generate(self, latents: Latents[Tensor], design: Design) -> Mapping[str, CountLikelihood]:
        """p(x | gamma, c, s, l)."""
        hidden = self.decode(latents.gamma, self.covariates(design), design)
        return {RNA: self.observe(hidden, latents.log_library, design)}

    def cell_state(self, latents: Latents[Tensor]) -> CellsLatent:
        """Return gamma."""
        return latents.gamma

    def weight(self, design: Design) -> Tensor | None:
        """What a cell of each type counts."""
        return None if self.label_weight is None else self.label_weight[design.levels(self.labels)]
