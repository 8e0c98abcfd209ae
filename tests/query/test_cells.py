"""Walking over cells, evaluation mode, and outputs."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
import zarr

from countvi.errors import OptionError
from countvi.query import Cells, OutputWriter, evaluation
from countvi.query.cells import map_cells


def test_blocks_cover_the_rows_in_their_order(tiny):
    source = tiny.source(20, 4)
    rows = np.array([3, 3, 19, 0, 7])
    cells = Cells(source, rows, chunk=2)
    blocks = list(cells)
    assert [block for block, _ in blocks] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    dense = torch.cat([batch.counts["rna"].to_dense() for _, batch in blocks]).numpy()
    np.testing.assert_array_equal(dense, source.x[rows])


def test_no_rows_give_one_empty_block(tiny):
    cells = Cells(tiny.source(3, 4), np.array([], dtype=int), chunk=2)
    ((block, batch),) = cells
    assert block == slice(0, 0)
    assert batch.n_cells == 0
    assert len(cells) == 0


def test_number_of_features(tiny):
    assert Cells(tiny.source(3, 4), np.arange(3), 2).n_features("rna") == 4


def test_a_chunk_of_nothing_is_refused(tiny):
    with pytest.raises(OptionError, match="at least 1; got 0"):
        Cells(tiny.source(3, 4), np.arange(3), chunk=0)


def test_evaluation_restores_every_module(tiny):
    model = tiny.model()
    model.encode_z.eval()
    before = [module.training for module in model.modules()]
    assert True in before and False in before
    with evaluation(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
    assert [module.training for module in model.modules()] == before
    assert not torch.is_inference_mode_enabled()


def test_evaluation_restores_after_an_error(tiny):
    model = tiny.model()
    with pytest.raises(RuntimeError, match="inside"), evaluation(model):
        raise RuntimeError("inside")
    assert all(module.training for module in model.modules())


def test_map_cells_writes_blocks_in_place(tiny):
    source = tiny.source(9, 4)
    totals, dense = map_cells(
        tiny.model(4), tiny.cells(source, 4), lambda b: (b.counts["rna"].totals(), b.counts["rna"].to_dense())
    )
    np.testing.assert_array_equal(totals, source.x.sum(1))
    np.testing.assert_array_equal(dense, source.x)


@pytest.mark.parametrize("kind", ["numpy", "memmap", "zarr", "h5py"])
def test_output_writer_writes_into_anything_array_like(kind, tmp_path):
    shape = (2, 5, 3)
    out = {
        "numpy": lambda: np.zeros(shape, np.float32),
        "memmap": lambda: np.memmap(tmp_path / "x", np.float32, "w+", shape=shape),
        "zarr": lambda: zarr.create_array(tmp_path / "x.zarr", shape=shape, chunks=(1, 2, 2), dtype="f4"),
        "h5py": lambda: h5py.File(tmp_path / "x.h5", "w").create_dataset("x", shape, "f4"),
    }[kind]()
    writer = OutputWriter(shape, out)
    expected = np.arange(30, dtype=np.float32).reshape(shape)
    values = torch.as_tensor(expected)
    writer.write(values[:, :2], slice(0, 2), slice(0, 2))
    writer.write(values[:1, 2:], slice(0, 1), slice(2, 5))
    writer.write(values[1:, 2:], slice(1, 2), slice(2, 5))
    writer.write(values[:, :0], slice(0, 2), slice(5, 5))
    assert writer.out is out
    np.testing.assert_array_equal(np.asarray(out[...]), expected)


def test_output_writer_makes_its_own_array():
    writer = OutputWriter((2, 3))
    writer.write(torch.ones(2, 3), slice(0, 2))
    assert writer.out.dtype == np.float32
    assert writer.out.sum() == 6


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((3, 2), np.float32), r"shape \(2, 3\) \(0.0 MiB in float32\); got \(3, 2\)"),
        (np.zeros((2, 3), np.int32), "int32, which drops the fractions"),
        ([[0.0] * 3] * 2, "got list"),
    ],
)
def test_output_writer_refuses_with_a_sentence(out, message):
    with pytest.raises(OptionError, match=message):
        OutputWriter((2, 3), out)
