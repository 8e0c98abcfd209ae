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
