"""Least-squares fit of a network to known numbers of the cells, before it is trained on the objective."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from countvi import seeding
from countvi.batch import Batch
from countvi.train.loader import BatchLoader
from countvi.train.schedules import OneCycle

_N_STEPS = 400
_PEAK = 1e-2
# A stream of the seed that training does not use.
_DROPOUT = 4


@torch.enable_grad()
def regress(
    network: nn.Module, predict: Callable[[Batch], Tensor], target: Tensor, loader: BatchLoader, seed: int
) -> None:
    """Fit a network to numbers of the training cells by least squares, in place.

    Parameters
    ----------
    network
        What is fitted, on the CPU.
    predict
        From a minibatch to the numbers of its cells, through the network.
    target
        The numbers of all cells, shape ``(cells, ...)``, by row of the data.
    loader
        Minibatches.
    seed
        Of dropout.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=_PEAK)
    n_epochs = math.ceil(_N_STEPS / loader.n_steps())
    rate = OneCycle(_PEAK, n_epochs * loader.n_steps())
    step = 0
    network.train()
    with seeding.layers(seeding.generator(seed, _DROPOUT).initial_seed()):
        for epoch in range(n_epochs):
            for rows, batch in loader.train(epoch):
                loss = (predict(batch) - target[torch.from_numpy(rows)]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
                optimizer.step()
                step += 1
    network.eval()
