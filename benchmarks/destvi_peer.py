"""The other side of the deconvolution: scvi-tools in a process of its own, 1.4.0 in an interpreter of its own.

``python destvi_peer.py FOLDER`` reads ``reference.h5ad`` and ``slide.h5ad`` with ``job.json`` beside them, and writes
``proportions.csv``, ``seconds.json`` and, where the job asks to keep them, both models.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path


def main(folder: Path) -> None:
    """Train both models and write what they say and how long each took."""
    warnings.simplefilter("ignore")
    import anndata
    import scvi
    import torch

    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    scvi.settings.seed, scvi.settings.verbosity = job["seed"], 40
    quiet = {"accelerator": job["accelerator"], "enable_progress_bar": False}
    cells, slide = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("reference", "slide"))
    scvi.model.CondSCVI.setup_anndata(cells, labels_key="cell_type")
    reference = scvi.model.CondSCVI(cells, **job["options"])
    took = {}
    start = time.perf_counter()
    reference.train(**_epochs(job["reference_epochs"]), **quiet)
    took["reference"] = time.perf_counter() - start
    scvi.model.DestVI.setup_anndata(slide)
    model = scvi.model.DestVI.from_rna_model(slide, reference)
    if job["uncounted_epochs"]:
        model.train(job["uncounted_epochs"], **quiet)
    start = time.perf_counter()
    model.train(**_epochs(job["slide_epochs"]), **quiet)
    took["slide"] = time.perf_counter() - start
    # Without jax its training stops at the first step and says nothing.
    took["epochs"] = len(model.history["elbo_train"])
    model.get_proportions().to_csv(folder / "proportions.csv")
    if job["keep"]:
        reference.save(folder / "reference")
        model.save(folder / "slide")
    (folder / "seconds.json").write_text(json.dumps(took))


def _epochs(given: int | None) -> dict[str, int]:
    """Return an argument of ``train``: its own default is another number than what it makes of ``None``."""
    return {} if given is None else {"max_epochs": given}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
