"""Read-outs asked for by single arguments, so that a test names only those that it is about."""

from __future__ import annotations

from typing import Any

from countvi import query
from countvi.batch import RNA


def draws_of(
    n_samples: int = 1, return_mean: bool = True, use_z_mean: bool = False, importance: Any = None, seed: int = 0
) -> query.Draws:
    return query.Draws(n_samples, return_mean, use_z_mean, importance, seed)


def normalized_expression(model: Any, cells: query.Cells, *, out: Any = None, **options: Any) -> Any:
    draws = draws_of(**{name: options.pop(name) for name in draws_of.__annotations__ if name in options})
    return query.expectation(query.DecodedExpression(model, **options), cells, draws, out=out)


def sampled_expression(model: Any, cells: query.Cells, n_samples_overall: int, seed: int = 0, **options: Any) -> Any:
    cells, draws = query.resampled(cells, n_samples_overall, query.Draws(seed=seed))
    return query.expectation(query.DecodedExpression(model, **options), cells, draws)


def posterior_predictive(model: Any, cells: query.Cells, *, genes: Any = None, **options: Any) -> list[Any]:
    return query.posterior_predictive(model, cells, {RNA: genes}, **options)[RNA]


def likelihood_parameters(model: Any, cells: query.Cells, n_samples: int = 1, give_mean: bool = False) -> Any:
    return query.likelihood_parameters(model, cells, query.Draws(n_samples, give_mean))


def feature_correlation(model: Any, cells: query.Cells, *, genes: Any = None, **options: Any) -> Any:
    return query.feature_correlation(query.DenoisedFeatures(model, {RNA: genes}), cells, **options)
