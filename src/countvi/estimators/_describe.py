"""What an estimator says about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from countvi.data import Modality
    from countvi.estimators._trainable import Trainable

# A list of more values is shown by its length.
_LONG = 20


def describe(model: Trainable) -> str:
    """Return its state, its data, its covariates and its options, a line each."""
    state = f"trained, {len(model._rows)} epochs" if model.is_trained else "not trained"
    purposes = model.registry.purposes
    covariates = []
    for i, column in enumerate(model.registry.columns):
        if column.key is not None:
            serves = ", ".join(purposes.of(i)) if purposes is not None else ""
            new = len(column.categories) - model._mapped.known[i] if model._mapped is not None else 0
            covariates.append(
                f"  {serves or column.role}: obs[{column.key!r}], {len(column.categories)} categories"
                f"{f', {new} of them new to the reference' if new else ''}"
            )
    return "\n".join(
        [
            f"{type(model).__name__} ({state}{', mapped onto a reference' if model._mapped is not None else ''})",
            *(f"  data: {m.n_features:,} features in {_where(m)}" for m in model.registry.modalities),
            *covariates,
            "  options: " + ", ".join(f"{name}={_brief(value)}" for name, value in model._init_args.items()),
        ]
    )


def _where(modality: Modality) -> str:
    return modality.location if modality.part is None else f"{modality.part}: {modality.location}"


def _brief(value: Any) -> str:
    """Text of an argument; of a long list, how long it is."""
    if isinstance(value, (list, tuple)) and len(value) > _LONG:
        return f"<{len(value):,} values>"
    return repr(value)
