"""Pictures. Every function returns the Axes it drew on, and draws on ``ax`` if it is given one.

Without ``ax`` a figure is made through pyplot, so that a notebook shows it. Style settings are left as they are.
"""

from __future__ import annotations

from countvi.plot.attribution import attribution
from countvi.plot.criticism import predictive_check
from countvi.plot.differential import volcano
from countvi.plot.latent import latent
from countvi.plot.protein import protein_background
from countvi.plot.spatial import spatial
from countvi.plot.training import training_curves

__all__ = ["attribution", "latent", "predictive_check", "protein_background", "spatial", "training_curves", "volcano"]
