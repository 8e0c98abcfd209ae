"""Behind ``load_query_data``: a model of new cells that takes over what a reference has learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from countvi import seeding
from countvi.errors import NotTrainedError, OptionError
from countvi.estimators.options import check_flag
from countvi.estimators.persistence import load
from countvi.estimators.state import Mapped
from countvi.nn.surgery import Freezing, adopt

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.estimators.state import Fitted

    E = TypeVar("E", bound=Fitted)


def load_query_data(
    cls: type[E],
    adata: AnnData | MuData,
    reference_model: E | str | Path,
    *,
    unfrozen: bool = False,
    freeze_dropout: bool = False,
    freeze_expression: bool = True,
    freeze_decoder_first_layer: bool = True,
    freeze_batchnorm_encoder: bool = True,
    freeze_batchnorm_decoder: bool = False,
    freeze_library_encoder: bool = False,
    device: str = "cpu",
    seed: int | None = None,
) -> E:
    """Map new cells onto a trained model, which keeps what it knows (Lotfollahi et al. 2022).

    The result is a model of the new cells with the same cell states as the reference. Their batches, and categories
    of other covariates that the reference does not know, become new rows of its tables; :meth:`train` then learns
    these rows. New rows start at the mean of the known ones. Of what the reference knows, the encoder, the rows of
    known categories, dispersions and backgrounds are held, to the bit, so cell states of the reference's own cells do
    not change. By default two things move, as in scvi-tools: batch normalisation of the decoder (scale, shift and
    running statistics), and the encoder of library sizes in models that infer them. Decoded expression of the
    reference's cells, asked of the mapped model, then differs from the reference's. ``freeze_batchnorm_decoder=True,
    freeze_library_encoder=True`` holds these too.

    Parameters
    ----------
    adata
        New cells, with the columns of ``obs`` that the reference was set up with; no set-up is needed. Genes are
        matched by name; where some are missing, call ``prepare_query_anndata`` (``prepare_query_mudata``) first.
    reference_model
        A trained model of this class, or the folder that it was saved to.
    unfrozen
        Hold nothing: go on training the whole model, on the new cells alone.
    freeze_dropout
        Train without dropout.
    freeze_expression
        Hold the first layer of the encoders.
    freeze_decoder_first_layer
        Hold the first layer of the decoders.
    freeze_batchnorm_encoder, freeze_batchnorm_decoder
        Hold batch normalisation, and normalise with the reference's statistics in training too. That of the decoder
        moves by default.
    freeze_library_encoder
        Hold the network that infers library sizes, in models that infer them. It moves by default.
    device
        Where to put the model.
    seed
        Of :meth:`train` where it is given none; by default the reference's.

    Returns
    -------
    Estimator
        To be trained, unless the reference knows every category and there is nothing to learn.

    Raises
    ------
    MismatchError
        If the cells lack genes of the reference.
    UnknownNameError
        If ``obs`` lacks a column.

    Examples
    --------
    >>> mapped = countvi.SCVI.load_query_data(adata, "reference/")  # doctest: +SKIP
    >>> mapped.train()  # doctest: +SKIP
    >>> adata.obsm["X_scVI"] = mapped.get_latent_representation()  # doctest: +SKIP
    """
    freezing = {name: value for name, value in locals().items() if name == "unfrozen" or name.startswith("freeze_")}
    held = Freezing(**{name: check_flag(name, value) for name, value in freezing.items()})
    reference = _reference(cls, reference_model)
    registry = reference.extended_registry(adata)
    seed = reference.seed if seed is None else seeding.checked(seed)
    # Built from the data of the query, as weights that are computed from data are those of the query where the
    # reference has none.
    model = cls.restore(adata, registry, reference.arguments, seed, restored=False)
    known = tuple(len(column.categories) for column in reference.registry.columns)
    adopt(model.module, reference.module, known)
    model.mapped = Mapped(known, held)
    model.mapped.hold(model.module)
    model.module.eval()
    model.to_device(device)
    # With nothing left to learn there is nothing to wait for.
    model.is_trained = not can_learn(model)
    return model


def can_learn(model: Fitted) -> bool:
    """Whether training may change anything."""
    return any(parameter.requires_grad for parameter in model.module.parameters())


def _reference(model_class: type[E], given: E | str | Path) -> E:
    if isinstance(given, str | Path):
        return load(model_class, given, False)
    if type(given) is not model_class:
        message = (
            f"reference_model must be of class {model_class.__name__}, or the folder of a saved one; got a "
            f"{type(given).__name__}."
        )
        raise OptionError(message)
    if not given.is_trained:
        message = "The reference model is not trained yet, so there is nothing to map onto. Call its train() first."
        raise NotTrainedError(message)
    return given
