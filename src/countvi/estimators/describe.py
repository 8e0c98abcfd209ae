"""How an estimator is printed: its state, data, covariates and options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from countvi import data as data_layer
from countvi.errors import MismatchError, UnknownNameError

if TYPE_CHECKING:
    from countvi.data import CountMatrix
    from countvi.estimators.state import Fitted

# A list of more values is shown by its length.
_LONG = 20


def describe(self: Fitted) -> str:
    """Return its state, its data, its covariates and its options, a line each."""
    state = f"trained, {len(self.epochs)} epochs" if self.is_trained else "not trained"
    covariates = []
    for i, column in enumerate(self.registry.columns):
        if column.key is not None:
            new = len(column.categories) - self.mapped.known[i] if self.mapped is not None else 0
            covariates.append(
                f"  {self.registry.covariates.serves(i)}: obs[{column.key!r}], {len(column.categories)} categories"
                f"{f', {new} of them new to the reference' if new else ''}"
            )
    return "\n".join(
        [
            f"{type(self).__name__} ({state}{', mapped onto a reference' if self.mapped is not None else ''})",
            *(f"  data: {m.n_features:,} features in {_where(m)}" for m in self.registry.modalities),
            *covariates,
            "  options: " + ", ".join(f"{name}={_brief(value)}" for name, value in self.arguments.items()),
        ]
    )


def view_anndata_setup(self: Fitted) -> None:
    """Print where the model's counts lie, and the categories of each covariate with their numbers of cells."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, registry, codes = Console(highlight=False), self.registry, _codes(self)
    for modality in registry.modalities:
        console.print(f"{modality.n_features:,} {modality.noun}s in {_where(modality)}", markup=False)
    for key, moments in registry.continuous.items():
        how = f"standardised by its mean {moments.mean:.6g} and standard deviation {moments.sd:.6g}"
        how = how if registry.continuous_moments else "used as it is"
        console.print(f"continuous covariate in obs[{key!r}], {how}", markup=False)
    if registry.size_factor_key is not None:
        console.print(f"size factors in obs[{registry.size_factor_key!r}]", markup=False)
    for i, column in enumerate(registry.columns):
        if column.key is None:
            continue
        table = Table(
            "category", title=escape(f"{registry.covariates.serves(i)}: obs[{column.key!r}]"), title_justify="left"
        )
        table.add_column("code", justify="right")
        table.add_column("cells", justify="right")
        sizes = None if codes is None else np.bincount(codes[:, i], minlength=len(column.categories))
        for code, category in enumerate(column.categories[:_LONG]):
            table.add_row(escape(str(category)), str(code), "" if sizes is None else f"{sizes[code]:,}")
        if len(column.categories) > _LONG:
            table.add_row(f"and {len(column.categories) - _LONG:,} more", "", "")
        console.print(table)


def _codes(model: Fitted) -> np.ndarray | None:
    """Codes of all columns, of those that the model does not read too; ``None`` if the data lack one."""
    if model.adata is None:
        return None
    try:
        return data_layer.covariate_codes(model.adata, model.registry)
    except (MismatchError, UnknownNameError):
        return None


def _where(modality: CountMatrix) -> str:
    return modality.location if modality.part is None else f"{modality.part}: {modality.location}"


def _brief(value: Any) -> str:
    """Text of an argument; of a long list, how long it is."""
    if isinstance(value, (list, tuple)) and len(value) > _LONG:
        return f"<{len(value):,} values>"
    return repr(value)
