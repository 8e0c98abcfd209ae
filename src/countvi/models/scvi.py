"""The model of Lopez et al. (2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from countvi.batch import RNA, Batch, Design
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.rate import Rate
from countvi.models.count_model import CountModel
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.latent import Gaussian, Latent
from countvi.nn.library import Library
from countvi.nn.linear import CovariateFeatures, Head
from countvi.nn.mlp import Mlp
from countvi.nn.observation import Observation
from countvi.ops import Link
from countvi.typing import CellsLatent

T = TypeVar("T", Latent, Tensor)


class Latents(NamedTuple, Generic[T]):
    """The latent variables of a cell: their distributions, or their values."""

    z: T
    log_library: T


class SCVI(CountModel):
    r"""Single-cell variational inference.

    .. math::

        z_n &\sim \mathrm{Normal}(0, I) && \text{cell state} \\
        \log \ell_n &\sim \mathrm{Normal}(m_{s_n}, v_{s_n}) && \text{library size, unless it is given} \\
        \rho_n &= f_w(z_n, s_n) && \text{expected frequencies} \\
        \pi_{ng} &= f_h^g(z_n, s_n) && \text{dropout, with zero inflation} \\
        x_{ng} &\sim \mathrm{ObservationModel}(\ell_n \rho_{ng}, \theta_g, \pi_{ng})

    with the guide :math:`q(z_n \mid x_n)\, q(\log \ell_n \mid x_n)`.

    Parameters
    ----------
    n_latent
        Dimensions of the cell state.
    covariates
        Continuous covariates and batch embedding, as features of a cell.
    encode_z
        :math:`q(z \mid x)`.
    encode_covariates
        Whether the encoders see the covariate features.
    library
        Where the library size comes from.
    to_state
        From z to the cell state that is decoded: the identity, or the softmax of a logistic normal.
    decode
        The shared trunk of :math:`f_w` and :math:`f_h`.
    rho
        Last layer of :math:`f_w`, without its link.
    link
        Softmax (frequencies that sum to one), or softplus with size factors.
    observe
        The observation model.

    References
    ----------
    Lopez, Regier, Cole, Jordan, Yosef. Deep generative modeling for single-cell transcriptomics. Nature Methods 15,
    1053-1058 (2018), Methods.
    """

    def __init__(
        self,
        *,
        n_latent: int,
        covariates: CovariateFeatures,
        encode_z: GaussianEncoder,
        encode_covariates: bool,
        library: Library,
        to_state: nn.Module,
        decode: Mlp,
        rho: Head,
        link: Link,
        observe: Observation,
    ) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.covariates = covariates
        self.encode_z = encode_z
        self.encode_covariates = encode_covariates
        self.library = library
        self.to_state = to_state
        self.decode = decode
        self.rho = rho
        self.link = link
        self.observe = observe

    def guide(self, batch: Batch) -> Latents[Latent]:
        """q(z, log l | x)."""
        x, design = batch.counts[RNA], batch.design
        features = self.covariates(design) if self.encode_covariates else None
        return Latents(z=self.encode_z(x, features, design), log_library=self.library.guide(x, features, design))

    def prior(self, design: Design) -> Latents[Latent]:
        """p(z, log l | s)."""
        z = Gaussian.standard(design.n_cells, self.n_latent, like=self.rho.weight)
        return Latents(z=z, log_library=self.library.prior(design))

    def generate(self, latents: Latents[Tensor], design: Design) -> Mapping[str, CountLikelihood]:
        """p(x | z, l, s)."""
        hidden = self.decode(self.cell_state(latents), self.covariates(design), design)
        rate = Rate(logits=self.rho(hidden), log_library=latents.log_library, link=self.link)
        return {RNA: self.observe(rate, hidden, design)}

    def cell_state(self, latents: Latents[Tensor]) -> CellsLatent:
        """Return z, on the simplex with ``latent_distribution="ln"``."""
        return self.to_state(latents.z)
