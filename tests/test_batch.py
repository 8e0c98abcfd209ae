"""The values that cross layers: what they keep when they are moved or changed."""

from __future__ import annotations

import torch

from countvi.batch import Batch, CountBlock, Design

MEASURED = torch.tensor([True, False, True])


def design() -> Design:
    codes = torch.tensor([[0, 1], [1, 0], [2, 1]])
    return Design(codes, torch.zeros(3, 0), present={"atac": MEASURED})


def test_a_modality_that_is_not_named_was_measured_everywhere() -> None:
    assert torch.equal(design().measured("atac"), MEASURED)
    assert design().measured("rna") is None
    assert Design(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 0)).measured("atac") is None


def test_a_counterfactual_level_changes_one_column_and_nothing_else() -> None:
    other = design().with_level(1, 0)
    assert other.codes.tolist() == [[0, 0], [1, 0], [2, 0]]
    assert torch.equal(other.measured("atac"), MEASURED)
    assert design().codes.tolist() == [[0, 1], [1, 0], [2, 1]]


def test_moving_a_batch_keeps_what_was_measured_and_its_type() -> None:
    batch = Batch({"atac": CountBlock.from_dense(torch.ones(3, 2))}, design()).to(dtype=torch.float64)
    assert batch.counts["atac"].values.dtype == torch.float64
    present = batch.design.measured("atac")
    assert present.dtype == torch.bool and torch.equal(present, MEASURED)


def sparse(n_features: int, seed: int, n_cells: int = 5) -> torch.Tensor:
    return torch.poisson(torch.full((n_cells, n_features), 0.7), generator=torch.Generator().manual_seed(seed))


def test_features_side_by_side() -> None:
    dense = [sparse(4, 0), torch.zeros(5, 2), sparse(3, 1)]
    joined = CountBlock.side_by_side([CountBlock.from_dense(x) for x in dense])
    assert torch.equal(joined.to_dense(), torch.cat(dense, dim=1))
    expected = CountBlock.from_dense(torch.cat(dense, dim=1))
    assert torch.equal(joined.offsets, expected.offsets)
    assert torch.equal(joined.columns, expected.columns) and torch.equal(joined.values, expected.values)


def test_side_by_side_of_one_or_of_no_cells() -> None:
    one = CountBlock.from_dense(sparse(4, 0))
    assert CountBlock.side_by_side([one]) is one
    empty = CountBlock.side_by_side([CountBlock.from_dense(torch.zeros(0, n)) for n in (2, 3)])
    assert (empty.n_cells, empty.n_features) == (0, 5)


def test_some_features() -> None:
    dense = sparse(7, 2)
    for start, stop in ((0, 7), (0, 3), (3, 6), (6, 7)):
        part = CountBlock.from_dense(dense).features(start, stop)
        assert part.n_features == stop - start
        assert torch.equal(part.to_dense(), dense[:, start:stop])
