"""The regularised model of one or several modalities with ambient counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar, cast

from torch import Tensor, nn

from countvi.batch import Batch, CountBlock, Design
from countvi.likelihoods.ambient_rate import AmbientRate
from countvi.likelihoods.gamma_poisson import GammaPoisson
from countvi.models.count_model import CountModel
from countvi.nn.joint import JointEncoder
from countvi.nn.latent import Gaussian, Latent, side_by_side
from countvi.nn.levels import ModalityTables, level_tables
from countvi.nn.library import ResidualLibrary
from countvi.nn.linear import CovariateFeatures, Head
from countvi.nn.mlp import Mlp
from countvi.nn.technical import Background, FeatureScaling, PosteriorDispersion
from countvi.typing import CellsLatent

T = TypeVar("T", Latent, Tensor)


class Latents(NamedTuple, Generic[T]):
    """The latent variables of a cell: their distributions, or their values."""

    z: T
    """Cell state, ``(cells, latent)``."""
    log_library: T
    """Log library size in counts, ``(cells, modalities)``."""


class ModalityModel(nn.Module):
    r"""How a cell state becomes the counts of one modality.

    Parameters
    ----------
    library
        Prior and guide of the library size.
    decode, rho
        :math:`f_w`: its trunk, and its last layer without the softplus.
    dispersion
        :math:`\theta`.
    log_unit
        Logarithm of u, the counts of an average cell: of rho and the background, a scalar.
    background
        :math:`B`; ``None`` for none.
    scaling
        :math:`y`; ``None`` for one.
    """

    log_unit: Tensor

    def __init__(
        self,
        *,
        library: ResidualLibrary,
        decode: Mlp,
        rho: Head,
        dispersion: PosteriorDispersion,
        log_unit: Tensor,
        background: Background | None = None,
        scaling: FeatureScaling | None = None,
    ) -> None:
        super().__init__()
        self.library = library
        self.decode = decode
        self.rho = rho
        self.dispersion = dispersion
        self.background = background
        self.scaling = scaling
        self.register_buffer("log_unit", log_unit.clone())

    def guide(self, counts: CountBlock, features: Tensor | None, design: Design, measured: Tensor | None) -> Gaussian:
        """q(log l | x), ``(cells,)``; the prior where the modality was not measured."""
        return self.library.guide(counts, features, design).where(measured, self.library.prior(design))

    def rate(self, z: CellsLatent, log_library: Tensor, features: Tensor | None, design: Design) -> AmbientRate:
        """Expected counts from latent variables ``(*samples, cells, latent)`` and ``(*samples, cells)``."""
        return AmbientRate(
            hidden=self.decode(z, features, design),
            weight=self.rho.weight,
            bias=self.rho.bias,
            log_library=log_library - self.log_unit,
            log_unit=self.log_unit,
            log_background=None if self.background is None else self.background(design),
            log_scaling=None if self.scaling is None else self.scaling(design),
        )

    def log_prior(self) -> dict[str, Tensor]:
        """Log-priors of the parameters of all cells; for theta, the negative divergence of its posterior."""
        terms = {"theta": self.dispersion.log_prior()}
        if self.background is not None and self.background.prior is not None:
            terms["background"] = self.background.log_prior()
        if self.scaling is not None:
            terms["scaling"] = self.scaling.log_prior()
        return terms


class Regularized(CountModel):
    r"""Counts of one or several modalities, with ambient background and regularised overdispersion.

    For each modality (whose index is left out),

    .. math::

        z_n &\sim \mathrm{Normal}(0, I) && \text{cell state, shared by all modalities} \\
        \log \ell_n &\sim \mathrm{Normal}(m_{p_n}, v_{p_n}) && \text{library size, with a constrained prior} \\
        \rho_n &= \mathrm{softplus} f_w(z_n, c_n) && \text{the cell's own counts, in an average cell} \\
        B_n &= \textstyle\sum_k e^{\beta_{k, e_{kn}}} && \text{ambient counts, in an average cell} \\
        y_n &= \textstyle\prod_t \mathrm{softplus}(\gamma_{t, s_{tn}}) / 0.7 && \text{scaling,}\quad
            \mathrm{softplus}(\gamma) / 0.7 \sim \mathrm{Gamma}(200, 200) \\
        \theta_{gd}^{-1/2} &\sim \mathrm{Exponential}(\lambda_d), && \lambda_d \sim \mathrm{Gamma}(9, 3) \\
        x_{ng} &\sim \mathrm{GammaPoisson}\left(\tfrac{\ell_n}{u} (\rho_{ng} + B_{ng})\, y_{ng},\ \theta_{g, d_n}\right)

    with conditioning covariates c, ambient covariates e, scaling covariates s, a dispersion group d, a library group p,
    and the guide :math:`q(z_n \mid x_n)\, \prod q(\log \ell_n \mid x_n)\, \prod q(\log \theta_{gd})`. A modality that
    was not measured in a cell has no counts there and leaves its library size, and its part of z, at the prior.

    Parameters
    ----------
    modalities
        By name, in the order of the library sizes.
    encode_z
        :math:`q(z \mid x)` of all modalities.
    covariates
        Continuous covariates, which encoders and decoders see.
    """

    def __init__(
        self, *, modalities: Mapping[str, ModalityModel], encode_z: JointEncoder, covariates: CovariateFeatures
    ) -> None:
        super().__init__()
        self.names = tuple(modalities)
        self.parts = nn.ModuleList(modalities.values())
        self.encode_z = encode_z
        self.covariates = covariates

    @property
    def modalities(self) -> dict[str, ModalityModel]:
        """The parts by name."""
        return dict(zip(self.names, cast("list[ModalityModel]", list(self.parts)), strict=True))

    def guide(self, batch: Batch) -> Latents[Latent]:
        """q(z, log l | x)."""
        design = batch.design
        features = self.covariates(design)
        libraries = [
            part.guide(batch.counts[name], features, design, design.measured(name))
            for name, part in self.modalities.items()
        ]
        return Latents(z=self.encode_z(batch, features), log_library=side_by_side(libraries))

    def prior(self, design: Design) -> Latents[Latent]:
        """p(z, log l | p)."""
        libraries = side_by_side([part.library.prior(design) for part in self.modalities.values()])
        z = Gaussian.standard(design.n_cells, self.encode_z.n_latent, like=libraries.loc)
        return Latents(z=z, log_library=libraries)

    def generate(self, latents: Latents[Tensor], design: Design) -> Mapping[str, GammaPoisson]:
        """p(x | z, l, c, e, s, d)."""
        features = self.covariates(design)
        return {
            name: GammaPoisson(
                rate=part.rate(latents.z, latents.log_library[..., i], features, design),
                log_theta=part.dispersion(design),
                measured=design.measured(name),
            )
            for i, (name, part) in enumerate(self.modalities.items())
        }

    def cell_state(self, latents: Latents[Tensor]) -> CellsLatent:
        """Return z."""
        return latents.z

    def level_tables(self, modality: str) -> Sequence[ModalityTables]:
        """What covariates do in the decoder of a modality, and its background unless that has a prior to stay at."""
        part = self.modalities[modality]
        tables, background = level_tables(part.decode), part.background
        if background is not None and background.prior is None:
            tables.append(ModalityTables(background, by_feature=True))
        return tables

    def log_prior(self) -> Mapping[str, Tensor]:
        """Log-priors of theta, background and scaling of each modality."""
        return {
            f"{name}.{term}": value
            for name, part in self.modalities.items()
            for term, value in part.log_prior().items()
        }
