"""Seeds without global side effects.

Everything countvi draws itself comes from a :class:`torch.Generator` that is passed along. What is drawn
deep inside networks in training, dropout for instance, finds its generator by :func:`layer_generator`, which holds for
one thread. The initialisation of layers, and dropout on a GPU, can only draw from torch's default stream:
:func:`forked` lends them that stream under a seed of ours and gives the user's back afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

from countvi.errors import OptionError

DEFAULT_SEED = 0
"""Used wherever a user gives no seed: the same call twice gives the same bits."""
_LAYERS: ContextVar[torch.Generator | None] = ContextVar("countvi_layers", default=None)
# There is one default stream in a process, so one thread has it at a time.
_DEFAULT_STREAM = threading.RLock()


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
    with _DEFAULT_STREAM, torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def layers(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Let layers draw from a stream of their own inside the block.

    Parameters
    ----------
    seed
        Seed of the stream.
    device
        Where the networks are. On the CPU nothing of torch's default stream is touched.
    """
    if torch.device(device).type != "cpu":
        with forked(seed, device):
            yield
        return
    token = _LAYERS.set(torch.Generator().manual_seed(seed))
    try:
        yield
    finally:
        _LAYERS.reset(token)


def layer_generator() -> torch.Generator | None:
    """Return what layers on the CPU draw from in training; ``None`` for torch's default stream."""
    return _LAYERS.get()


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
