"""The model of Gayoso, Steier et al. (2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from countvi.batch import PROTEIN, RNA, Batch, Design
from countvi.likelihoods.base import CountLikelihood
from countvi.likelihoods.negative_binomial_mixture import NegativeBinomialMixture
from countvi.likelihoods.rate import Rate
from countvi.models.count_model import Conditional, CountModel
from countvi.nn.encoder import GaussianEncoder
from countvi.nn.latent import Gaussian, Latent
from countvi.nn.levels import ModalityTables, level_tables
from countvi.nn.library import Library
from countvi.nn.linear import Appended, CovariateFeatures, LastLayer
from countvi.nn.observation import Observation, ProteinDecoder
from countvi.nn.trunks import Trunks
from countvi.ops import Link
from countvi.typing import CellsLatent

T = TypeVar("T", Latent, Tensor)

N_TRUNKS = 4
"""Of rho, of beta, of alpha and of pi."""


class Latents(NamedTuple, Generic[T]):
    """The latent variables of a cell: their distributions, or their values."""

    z: T
    """Cell state, ``(cells, latent)``."""
    log_library: T
    """Log library size of the RNA, ``(cells,)``."""
    epsilon: T
    """Standard normal numbers of which the log background is made once z is known, ``(cells, proteins)``."""


class TOTALVI(CountModel):
    r"""Total variational inference: RNA and protein of the same cells.

    .. math::

        z_n &\sim \mathrm{Normal}(0, I) && \text{cell state} \\
        \log \ell_n &\sim \mathrm{Normal}(l_{\mu, s_n}, l_{\sigma, s_n}) && \text{library size, unless it is given} \\
        \rho_n &= f_\rho(z_n, s_n) && \text{expected frequencies of genes} \\
        x_{ng} &\sim \mathrm{NegativeBinomial}(\ell_n \rho_{ng}, \theta_g) \\
        \log \beta_{nt} &\sim \mathrm{Normal}(c_{t, s_n}, d_{t, s_n}) && \text{protein background} \\
        \alpha_n &= g_\alpha(z_n, s_n) \ge 1, \quad \pi_n = h_\pi(z_n, s_n) && \text{foreground, share of background} \\
        v_{nt} &\sim \mathrm{Bernoulli}(\pi_{nt}) \\
        y_{nt} &\sim \mathrm{NegativeBinomial}\left(v_{nt} \beta_{nt} + (1 - v_{nt}) \beta_{nt} \alpha_{nt},
            \phi_t\right)

    with v summed out, and the guide :math:`q(z_n \mid x_n, y_n, s_n)\, q(\log \ell_n \mid x_n, y_n, s_n)\,
    q(\beta_n \mid z_n, s_n)`. With efficiencies, both means of a protein are multiplied by :math:`e_{t, s_n}`. A
    protein that was not measured in a cell adds nothing to the likelihood, and its background nothing to the
    divergence.

    Parameters
    ----------
    n_latent
        Dimensions of the cell state.
    covariates
        Continuous covariates, as features of a cell.
    encode_z
        :math:`q(z \mid x, y, s)`.
    encode_covariates
        Whether the encoders see the covariate features.
    library
        Where the library size comes from.
    to_state
        From z to the cell state that is decoded: the identity, or the softmax of a logistic normal.
    decode
        The trunks of :math:`f_\rho`, of :math:`q(\beta)`, of :math:`g_\alpha` and of :math:`h_\pi`.
    appended
        What the last layers see besides: the cell state and the covariates.
    rho
        Last layer of :math:`f_\rho`, without its link.
    link
        Softmax (frequencies that sum to one), or softplus with size factors.
    observe
        The observation model of the RNA.
    protein
        The proteins.

    References
    ----------
    Gayoso, Steier, Lopez, Regier, Nazor, Streets, Yosef. Joint probabilistic modeling of single-cell multi-omic data
    with totalVI. Nature Methods 18, 272-282 (2021), Methods.
    """

    annealed: ClassVar[frozenset[str]] = frozenset({"z", "log_beta"})
    noise: ClassVar[frozenset[str]] = frozenset({"epsilon"})

    def __init__(
        self,
        *,
        n_latent: int,
        covariates: CovariateFeatures,
        encode_z: GaussianEncoder,
        encode_covariates: bool,
        library: Library,
        to_state: nn.Module,
        decode: Trunks,
        appended: Appended,
        rho: LastLayer,
        link: Link,
        observe: Observation,
        protein: ProteinDecoder,
    ) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.covariates = covariates
        self.encode_z = encode_z
        self.encode_covariates = encode_covariates
        self.library = library
        self.to_state = to_state
        self.decode = decode
        self.appended = appended
        self.rho = rho
        self.link = link
        self.observe = observe
        self.protein = protein

    def guide(self, batch: Batch) -> Latents[Latent]:
        """q(z, log l | x, y, s), and the noise of the background."""
        x, y, design = batch.counts[RNA], batch.counts[PROTEIN], batch.design
        features = self.covariates(design) if self.encode_covariates else None
        return Latents(
            z=self.encode_z(x, features, design, y),
            log_library=self.library.guide(x, features, design, y),
            epsilon=self._standard(design, y.n_features),
        )

    def prior(self, design: Design) -> Latents[Latent]:
        """p(z, log l | s), and the noise of the background."""
        return Latents(
            z=self._standard(design, self.n_latent),
            log_library=self.library.prior(design),
            epsilon=self._standard(design, self.protein.pi.out_features),
        )

    def generate(self, latents: Latents[Tensor], design: Design) -> Mapping[str, CountLikelihood]:
        """p(x | z, l, s) and p(y | z, beta, s), with beta from q(beta | z, s)."""
        state, features = self.cell_state(latents), self.covariates(design)
        appended = self.appended(state, features, design)
        trunks = [torch.cat([h, appended], dim=-1) for h in self.decode(state, features, design)]
        rho, beta, alpha, pi = trunks
        rate = Rate(logits=self.rho(rho), log_library=latents.log_library, link=self.link)
        return {
            # Dropout comes from the trunk of pi, as in the published code.
            RNA: self.observe(rate, pi, design),
            PROTEIN: NegativeBinomialMixture(
                self.protein.rate(beta, alpha, pi, latents.epsilon, design),
                self.protein.log_phi(beta, design),
                design.measured_entries(PROTEIN),
            ),
        }

    def conditional(self, likelihoods: Mapping[str, CountLikelihood], design: Design) -> Mapping[str, Conditional]:
        """q(beta | z, s) and p(beta | s), of the proteins that were measured."""
        protein = likelihoods[PROTEIN]
        assert isinstance(protein, NegativeBinomialMixture)
        rate, prior, measured = protein.rate, self.protein.prior(design), protein.measured
        loc, scale = rate.loc, rate.scale_of_log
        if measured is not None:
            loc, scale = torch.where(measured, loc, prior.loc), torch.where(measured, scale, prior.scale)
        return {"log_beta": Conditional(Gaussian(loc, scale), prior, rate.log_beta)}

    def cell_state(self, latents: Latents[Tensor]) -> CellsLatent:
        """Return z, on the simplex with ``latent_distribution="ln"``."""
        return self.to_state(latents.z)

    def level_tables(self, modality: str) -> Sequence[ModalityTables]:
        """What covariates do to proteins; efficiencies stay at their prior, and RNA may need the trunk of pi, too."""
        tables = [one for one in level_tables(self.protein, by_feature=True) if one.part is not self.protein.efficiency]
        shared = any(isinstance(part, LastLayer) for part in self.observe.modules())
        return [*tables, *self.decode.level_tables(range(1, N_TRUNKS - shared))] if modality == PROTEIN else ()

    def log_prior(self) -> Mapping[str, Tensor]:
        """Log-prior of the efficiencies."""
        efficiency = self.protein.efficiency
        return {} if efficiency is None else {"efficiency": efficiency.log_prior()}

    def _standard(self, design: Design, n_dimensions: int) -> Gaussian:
        return Gaussian.standard(design.n_cells, n_dimensions, like=self.rho.bias)
