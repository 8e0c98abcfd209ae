"""Behind ``load_query_data``: a model of new cells that takes over what a reference has learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from countvi import seeding
from countvi.errors import NotTrainedError, OptionError
from countvi.estimators._build_regularized import check_flag
from countvi.nn.surgery import Freezing, adopt, freeze

if TYPE_CHECKING:
    from countvi.data.container import Container
    from countvi.estimators._base import CountEstimator
    from countvi.models.count_model import CountModel

    E = TypeVar("E", bound=CountEstimator)


@dataclass(frozen=True)
class Mapped:
    """What the model of a query remembers of its reference.

    Parameters
    ----------
    known
        How many categories the reference knew of each column of the codes.
    freezing
        What of it is held.
    """

    known: tuple[int, ...]
    freezing: Freezing

    def hold(self, module: CountModel) -> dict[str, tuple[slice, ...]]:
        """Hold what the reference knows; return the rows that may move all the same, by name of the parameter."""
        return freeze(module, self.known, self.freezing)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"known": list(self.known), "freezing": asdict(self.freezing)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Mapped:
        """Build from what :meth:`to_json` returned."""
        return cls(tuple(values["known"]), Freezing(**values["freezing"]))


def load_query_data(
    model_class: type[E],
    query: Container,
    reference_model: E | str | Path,
    freezing: Mapping[str, Any],
    *,
    device: str,
    seed: int | None,
) -> E:
    """Make the model of a query; see :meth:`countvi.SCVI.load_query_data`."""
    held = Freezing(**{name: check_flag(name, value) for name, value in freezing.items()})
    reference = _reference(model_class, reference_model)
    registry = reference._extended_by(query)
    seed = reference.seed if seed is None else seeding.checked(seed)
    model = model_class._restore(query, registry, reference._init_args, seed)
    # Weights that are computed from data are those of the query, where the reference has none.
    model._loaded = False
    with seeding.forked(seed):
        model.module = model._build(model._data)
    known = tuple(len(column.categories) for column in reference.registry.columns)
    adopt(model.module, reference.module, known)
    model._mapped = Mapped(known, held)
    model._mapped.hold(model.module)
    model.module.eval()
    model.to_device(device)
    # With nothing left to learn there is nothing to wait for.
    model.is_trained = not can_learn(model)
    return model


def can_learn(model: CountEstimator) -> bool:
    """Whether training may change anything."""
    return any(parameter.requires_grad for parameter in model.module.parameters())


def _reference(model_class: type[E], given: E | str | Path) -> E:
    if isinstance(given, str | Path):
        return model_class.load(given, False)
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
