"""What every estimator can do: what is known of a fit, and the verbs."""

from __future__ import annotations

from abc import ABC
from typing import TypeVar

from countvi.estimators import describe, persistence, training
from countvi.estimators.readouts import confounding
from countvi.estimators.state import Fitted
from countvi.models.count_model import CountModel

M = TypeVar("M", bound=CountModel, covariant=True)


class Estimator(Fitted[M], ABC):
    """Base of the estimators. Not made by hand: use :class:`countvi.SCVI` and its siblings."""

    train = training.train
    save = persistence.save
    load = classmethod(persistence.load)
    get_confounding = confounding.get_confounding
    view_anndata_setup = describe.view_anndata_setup
    __repr__ = describe.describe
