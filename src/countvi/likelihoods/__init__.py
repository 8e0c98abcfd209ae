"""Distributions of the counts of a cell, one torch Distribution per file, and the means that they are around.

Each keeps the decoder's unnormalised output, and makes cells x genes tensors only when asked for ``mean``, ``variance``
or ``sample``; ``log_prob`` takes sparse counts straight to :mod:`countvi.ops`.
"""
