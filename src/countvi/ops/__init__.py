r"""Numerics with exact gradients: tensors in, tensors out.

A function that has kernels chooses an implementation by the backend in force (:func:`backend`);
:mod:`countvi.ops.reference` has all functions, and is the specification that every implementation is tested against.

The likelihoods share their arguments. ``logits`` are what the decoder's last layer gives, before any normalisation;
``log_library`` is the logarithm of the size of each cell, ``-inf`` for an empty one; together with a :class:`Link` they
make :math:`\log\mu` (:func:`log_rate`). Leading ``samples`` axes are optional on every tensor and broadcast; counts
have none. Counts may be fractions and stored zeros are allowed. Half precision is widened to float32. Results are
differentiable once, with respect to every tensor of floating point. Nothing is added to a logarithm's argument: zero
means zero.

Errors in float32 are measured against mpmath with 50 digits. The error that comes with :math:`\log\mu` in float32 is
not the operation's and adds to what is stated: half a unit in the last place of :math:`\log\mu` (5e-7 at
:math:`\mu` = 1e6) times the slope, which is at most :math:`|x - \mu|`.
"""

from countvi.ops import likelihoods
from countvi.ops._backend import active_backend, backend
from countvi.ops._notice import quietly
from countvi.ops.affine import Affine
from countvi.ops.indexed import Indexed
from countvi.ops.likelihoods import *  # noqa: F403 - what it says is public
from countvi.ops.link import Link
from countvi.ops.networks import (
    batch_norm_rectify,
    drop,
    linear,
    log_rate,
    log_scale,
    rectify,
    scale,
    sparse_linear,
    standard_deviation,
    standard_divergence,
)
from countvi.ops.reference import FoldChanges
from countvi.ops.statistics import fold_changes, non_negative_least_squares

__all__ = [
    "Affine",
    "FoldChanges",
    "Indexed",
    "Link",
    "active_backend",
    "backend",
    "batch_norm_rectify",
    "drop",
    "fold_changes",
    "linear",
    "log_rate",
    "log_scale",
    "non_negative_least_squares",
    "quietly",
    "rectify",
    "scale",
    "sparse_linear",
    "standard_deviation",
    "standard_divergence",
]
__all__ += likelihoods.__all__
