"""Where the time of one training step goes, and how long its arithmetic alone takes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import datasets
import numpy as np
import torch
from measure import FLOOR, Comparison, Settings, seconds
from sides import SIDES

from countvi.batch import RNA, Batch
from countvi.data import split_from_indices
from countvi.estimators.loader import DatasetLoader
from countvi.train import TrainingPlan
from parts.step import BATCH, SIZES

_PIECES = ("data", "encoder", "decoder", "likelihood, forward and backward", "rest of backward", "optimiser")
_WHOLE = "whole step, as train does it"
_N_BLOCKS = 5


def measure(settings: Settings) -> list[Comparison]:
    """Time the pieces of a step one by one, and the same matrix products and updates as plain torch calls."""
    rows = []
    for n_cells, n_genes, density in settings.pick(SIZES, ((512, 100, 0.13),)):
        for likelihood in ("nb", "zinb"):
            adata = datasets.simulate(n_cells, n_genes, density=density)
            n_steps = settings.pick(200, 10)
            nonzero = adata.X.nnz / np.prod(adata.shape)
            stepper = _Stepper(adata, likelihood)
            floor = _Floor(stepper.model.module, n_genes, nonzero, likelihood == "zinb")
            title = f"{likelihood.upper()}, {n_genes:,} genes"
            table = {name: Comparison(f"{name}; {title}", "ms", other=FLOOR) for name in (*_PIECES, _WHOLE)}
            stepper.run(3), stepper.whole(1), floor.run(3)
            for _ in range(_N_BLOCKS):
                ours, theirs = stepper.run(n_steps // _N_BLOCKS), floor.run(n_steps // _N_BLOCKS)
                ours[_WHOLE], theirs[_WHOLE] = stepper.whole(n_steps), sum(theirs.values())
                for name, row in table.items():
                    row.ours.append(ours[name])
                    row.theirs.append(theirs[name])
            table[_WHOLE].notes = f"{nonzero:.1%} nonzero, batch {BATCH}"
            rows += table.values()
    return rows


class _Stepper:
    """A training step of countvi taken apart.

    The graph is cut at the parameters of the likelihood, so that its backward pass can be timed apart from the rest.
    """

    def __init__(self, adata: Any, likelihood: str) -> None:
        self.model = SIDES[0].build(adata, 0, gene_likelihood=likelihood)
        self.split = np.arange(adata.n_obs), np.empty(0, dtype=np.int64)
        split = split_from_indices(adata.n_obs, *self.split, np.empty(0, dtype=np.int64))
        self.feed = DatasetLoader(self.model.dataset, split, BATCH, seed=0)
        plan = TrainingPlan()
        parameters = [p for p in self.model.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-3, eps=plan.eps, weight_decay=plan.weight_decay, fused=True)
        self.noise = torch.Generator().manual_seed(0)

    def run(self, n_steps: int) -> dict[str, float]:
        """Mean milliseconds of each piece over some steps."""
        self.model.module.train()
        marks = np.zeros(len(_PIECES))
        batches = (batch for epoch in count() for _, batch in self.feed.train(epoch))
        for _ in range(n_steps):
            times = [time.perf_counter()]
            batch = next(batches)
            times.append(time.perf_counter())
            self._step(batch, lambda times=times: times.append(time.perf_counter()))
            marks += np.diff(times)
        return dict(zip(_PIECES, 1e3 * marks / n_steps, strict=True))

    def _step(self, batch: Batch, mark: Callable[[], None]) -> None:
        module = self.model.module
        q, p = module.guide(batch), module.prior(batch.design)
        latents, kl = module.sample(q, self.noise), q.z.kl(p.z).mean()
        mark()
        decoded = module.generate(latents, batch.design)[RNA]
        mark()
        heads = {"logits": decoded.rate.logits, "log_theta": decoded.log_theta}
        heads |= {"pi_logits": decoded.pi_logits} if hasattr(decoded, "pi_logits") else {}
        leaves = {name: head.detach().requires_grad_() for name, head in heads.items()}
        rate = dataclasses.replace(decoded.rate, logits=leaves["logits"])
        rest = {name: leaf for name, leaf in leaves.items() if name != "logits"}
        loss = -type(decoded)(rate, **rest).log_prob(batch.counts[RNA]).mean()
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        mark()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([*heads.values(), kl], [*slopes, None])
        mark()
        self.optimizer.step()
        mark()

    def whole(self, n_steps: int) -> float:
        """Milliseconds of a step in ``train``, over whole epochs."""
        per_epoch = self.feed.n_steps()
        epochs = max(1, round(n_steps / per_epoch))
        took = seconds(lambda: SIDES[0].train(self.model, *self.split, epochs, batch_size=BATCH))
        return 1e3 * took / (epochs * per_epoch)


class _Floor:
    """The arithmetic of a step, as plain torch calls on dense tensors of the same sizes.

    Data: the nonzero entries copied. Networks: their matrix products. Likelihood: an exponential, a logarithm and a
    reciprocal per entry, and with zero inflation another exponential and logarithm. Optimiser: fused Adam on parameters
    of the same sizes.
    """

    def __init__(self, module: torch.nn.Module, n_genes: int, density: float, zero_inflated: bool) -> None:
        cells, hidden, latent, heads = BATCH, 128, 10, 1 + zero_inflated
        entries = torch.ones(int(cells * n_genes * density))
        dense = torch.rand(cells, n_genes) + 0.5
        elementwise = [torch.exp, torch.log, torch.reciprocal, *[torch.exp, torch.log] * zero_inflated]
        self.works: list[Callable[[], object]] = [
            lambda: (entries.clone(), entries.long()),
            _products((cells, n_genes, hidden), *[(cells, hidden, latent)] * 2),
            _products((cells, latent, hidden), *[(cells, hidden, n_genes)] * heads),
            lambda: [function(dense) for function in elementwise],
            _products(
                *[(hidden, cells, n_genes), (cells, n_genes, hidden)] * heads,
                *[(latent, cells, hidden), (cells, hidden, latent)],
                *[(hidden, cells, latent), (cells, latent, hidden)] * 2,
                (n_genes, cells, hidden),
            ),
            _update(module),
        ]

    def run(self, n_steps: int) -> dict[str, float]:
        """Mean milliseconds of each piece over some repeats."""
        return {
            name: 1e3 / n_steps * seconds(lambda work=work: [work() for _ in range(n_steps)])
            for name, work in zip(_PIECES, self.works, strict=True)
        }


def _products(*sizes: tuple[int, int, int]) -> Callable[[], object]:
    """Matrix products ``(m, k) @ (k, n)``."""
    pairs = [(torch.rand(m, k), torch.rand(k, n)) for m, k, n in sizes]
    return lambda: [torch.mm(a, b) for a, b in pairs]


def _update(module: torch.nn.Module) -> Callable[[], object]:
    """A step of fused Adam on copies of a model's parameters."""
    copies = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    for parameter in copies:
        parameter.grad = torch.rand_like(parameter)
    return torch.optim.Adam(copies, lr=1e-6, fused=True).step
