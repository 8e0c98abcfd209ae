"""Seeds without global side effects.

Everything countvi draws itself comes from a :class:`torch.Generator` that is passed along. Two things can only
draw from torch's default stream: the initialisation of layers, and dropout. :func:`forked` lends them that stream
under a seed of ours and gives the user's back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from countvi.errors import OptionError

DEFAULT_SEED = 0
"""Used wherever a user gives no seed: the same call twice gives the same bits."""


def checked(seed: Any) -> int:
    """Return a user's seed as an int.

    Raises
    ------
    OptionError
        If it is not a whole number of at least zero that fits into 63 bits.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        message = f"seed must be a whole number of at least 0 (and below 2**63); got {seed!r}."
        raise OptionError(message)
    return int(seed)


@contextmanager
def forked(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's default streams inside the block; restore them after it.

    Parameters
    ----------
    seed
        Seed of the streams inside the block.
    device
        Device whose default stream is lent besides the CPU's.
    """
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        yield


def generator(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for one named stream of a seed.

    Parameters
    ----------
    seed
        The user's seed.
    *stream
        Numbers that name the stream (an epoch, a purpose). Different names give independent streams.
    device
        Where the generator draws.

    Raises
    ------
    OptionError
        If the seed cannot be one.
    """
    # Mixing through SeedSequence keeps streams apart; seed + epoch would make (0, 1) and (1, 0) the same stream.
    state = np.random.SeedSequence(checked(seed), spawn_key=stream).generate_state(1, dtype=np.uint64)
    return torch.Generator(device=device).manual_seed(int(state[0]))
