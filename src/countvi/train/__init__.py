"""Training: one loop for every model."""

from countvi.train.adversary import BatchAdversary
from countvi.train.callbacks import Callback, Progress
from countvi.train.config import EarlyStopping, LoopConfig, TrainingPlan, default_max_epochs, scvi_tools_plan
from countvi.train.history import Row
from countvi.train.loader import BatchLoader
from countvi.train.loop import FitResult, fit
from countvi.train.progress import progress_callback
from countvi.train.regression import regress
from countvi.train.rollback import NonFiniteAt, NonFiniteStep

__all__ = [
    "BatchAdversary",
    "BatchLoader",
    "Callback",
    "EarlyStopping",
    "FitResult",
    "LoopConfig",
    "NonFiniteAt",
    "NonFiniteStep",
    "Progress",
    "Row",
    "TrainingPlan",
    "default_max_epochs",
    "fit",
    "progress_callback",
    "regress",
    "scvi_tools_plan",
]
