"""Several processes on one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from countvi.data import make_split
from countvi.errors import OptionError
from countvi.estimators.loader import DatasetLoader

SCRIPT = """
import json, sys
import anndata, numpy as np, pandas as pd, torch
import countvi

def main():
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(1.0, 3.0, size=(100, 20))).astype(np.float32) + 1.0
    adata = anndata.AnnData(x, obs=pd.DataFrame({"batch": rng.choice(["east", "west"], 100)},
                                                index=[f"c{i}" for i in range(100)]))
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    model = countvi.SCVI(adata, n_hidden=8, n_latent=3)
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    model.train(6, batch_size=15, accelerator="cpu", devices=2, strategy="ddp_spawn", enable_progress_bar=False)
    print(json.dumps({
        "moved": {name: float((p.detach() - before[name]).abs().max()) for name, p in model.module.named_parameters()},
        "finite": all(bool(torch.isfinite(t).all()) for t in model.module.state_dict().values()),
        "history": model.history.drop(columns="seconds").to_dict("list"),
        "n_steps": len(model.train_indices),
        "latent": bool(np.isfinite(model.get_latent_representation()).all()),
        "elbo": float(model.get_elbo(indices=model.validation_indices)),
    }))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["finite"] and result["latent"]
    # The constant before batch normalisation has gradient zero.
    still = {name for name, distance in result["moved"].items() if distance < 1e-4}
    assert still <= {"encode_z.mlp.layers.0.linear.bias", "decode.layers.0.linear.bias"}
    history = result["history"]
    assert len(history["elbo_train"]) == 6
    assert history["elbo_validation"][-1] < history["elbo_validation"][0]
    assert history["n_rollbacks"] == [0.0] * 6


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [200, 50, 30, 10])
def test_all_processes_step_equally_often(tiny, batch_size, world):
    """A process that stops stepping leaves the others waiting for its gradients."""
    data = tiny.make().dataset
    loader = DatasetLoader(
        data, make_split(100, train_size=0.9, validation_size=None, shuffle=True, seed=0), batch_size, 0
    )
    parts = [[rows for rows, _ in loader.train(3, rank, world)] for rank in range(world)]
    assert [len(part) for part in parts] == [loader.n_steps(world)] * world
    seen = np.concatenate([rows for part in parts for rows in part])
    alone = [rows for rows, _ in loader.train(3)]
    assert set(seen) == set(np.concatenate(alone)) and len(set(seen)) == 90
    # Step by step, the processes share what one process would see in order.
    ordered = [parts[i % world][i // world] for i in range(len(alone))]
    assert all((a == b).all() for a, b in zip(ordered, alone, strict=True))


def test_processes_that_would_hang_are_refused(tiny):
    for strategy in ("ddp_fork", "ddp_notebook"):
        with pytest.raises(OptionError, match="ddp_spawn"):
            tiny.train(tiny.make(), 1, devices=2, strategy=strategy)
