"""Mapping new cells onto a trained model: its tables grow, and what it knows does not move.

Architectural surgery (Lotfollahi et al. 2022). Nothing here knows a model: which tables follow which covariates is what
:class:`~countvi.nn.levels.ByLevel` says, and which side of a model a network is on follows from the part that it is in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from countvi.nn.encoder import GaussianEncoder
from countvi.nn.joint import JointEncoder
from countvi.nn.levels import ByLevel
from countvi.nn.library import LogNormalLibrary, ResidualLibrary
from countvi.nn.mlp import BatchNorm, Block, Mlp
from countvi.nn.trunks import Trunks

_ENCODER, _DECODER, _LIBRARY = "encoder", "decoder", "library"
_ENCODERS = (GaussianEncoder, JointEncoder)
_LIBRARIES = (LogNormalLibrary, ResidualLibrary)


@dataclass(frozen=True)
class Freezing:
    """What of a reference may not move while a query is mapped onto it; the rows of new levels always may.

    Parameters
    ----------
    unfrozen
        Nothing is held: all weights move.
    freeze_dropout
        Switch dropout off.
    freeze_expression
        Hold the first layer of the encoders, which sees expression.
    freeze_decoder_first_layer
        Hold the first layer of the decoders, which sees the cell state.
    freeze_batchnorm_encoder, freeze_batchnorm_decoder
        Hold scale, shift and running statistics, and normalise with the latter in training too.
    freeze_library_encoder
        Hold the network that infers library sizes.
    """

    unfrozen: bool = False
    freeze_dropout: bool = False
    freeze_expression: bool = True
    freeze_decoder_first_layer: bool = True
    freeze_batchnorm_encoder: bool = True
    freeze_batchnorm_decoder: bool = False
    freeze_library_encoder: bool = False


@torch.no_grad()
def adopt(model: nn.Module, reference: nn.Module, known: Sequence[int]) -> None:
    """Take over the weights of a reference that knows fewer levels.

    Rows of new levels of what is learned start at the mean of the rows of known levels; those of what is computed from
    data (buffers, such as the moments of library sizes) stay as they are.

    Parameters
    ----------
    model
        Built like the reference, but for more levels; the new ones come last.
    reference
        Where the weights come from.
    known
        How many levels the reference knows of each column of the codes.
    """
    weights, own = reference.state_dict(), model.state_dict()
    learned = {name for name, _ in model.named_parameters()}
    tables = {name: part for name, part in _tables(model) if name in own}
    for name, tensor in own.items():
        if name in tables:
            _grow(tensor, weights.get(name), tables[name], known, learned=name in learned)
            continue
        if name.endswith(".inputs") and name not in weights:
            # The last layer of a decoder that had no levels to see.
            tensor.copy_(weights[f"{name.removesuffix('inputs')}weight"].t())
            continue
        if name not in learned and name in weights and weights[name].shape != tensor.shape:
            continue  # computed from the new cells, such as how much those of a type count
        assert name in weights and weights[name].shape == tensor.shape, f"{name} grew, and no part says by which levels"
        tensor.copy_(weights[name])


def freeze(model: nn.Module, known: Sequence[int], freezing: Freezing) -> dict[str, tuple[slice, ...]]:
    """Hold what a reference knows.

    Parameters
    ----------
    model
        With the weights of a reference in it. Parameters that may not move stop requiring gradients.
    known
        How many levels the reference knew of each column of the codes.
    freezing
        What to hold.

    Returns
    -------
    dict
        Rows that may move, for parameters of which only some may, by name.
    """
    if freezing.unfrozen:
        return {}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for side, part in _parts(model, _DECODER):
        _release(side, part, freezing)
    parameters = dict(model.named_parameters())
    moving = {}
    for name, part in _tables(model):
        rows = _new_rows(part, known)
        if name in parameters and rows and not parameters[name].requires_grad:
            parameters[name].requires_grad_(True)
            moving[name] = rows
    return moving


def _release(side: str, part: nn.Module, freezing: Freezing) -> None:
    """Let go of what a part of a model need not hold."""
    if isinstance(part, Block) and freezing.freeze_dropout:
        part.dropout = part.drop_input = 0.0
    if isinstance(part, BatchNorm):
        held = {
            _ENCODER: freezing.freeze_batchnorm_encoder,
            _DECODER: freezing.freeze_batchnorm_decoder,
            _LIBRARY: freezing.freeze_library_encoder,
        }
        part.frozen = held[side]
        part.requires_grad_(not part.frozen)
    elif side == _LIBRARY and not freezing.freeze_library_encoder:
        for parameter in part.parameters(recurse=False):
            parameter.requires_grad_(True)
    elif isinstance(part, Mlp | Trunks):
        held_first = {
            _ENCODER: freezing.freeze_expression,
            _DECODER: freezing.freeze_decoder_first_layer,
            _LIBRARY: True,
        }
        first = part.first if isinstance(part, Trunks) else part.layers[0]
        assert isinstance(first, Block)
        first.linear.requires_grad_(not held_first[side])


def _parts(module: nn.Module, side: str) -> Iterator[tuple[str, nn.Module]]:
    """All parts of a module, from the whole to the smallest, and the side of the model that each is on."""
    if isinstance(module, _LIBRARIES):
        side = _LIBRARY
    elif isinstance(module, _ENCODERS) and side != _LIBRARY:
        side = _ENCODER
    yield side, module
    children = list(module.children())
    if isinstance(module, Trunks):  # what follows their first layer has no first layer of its own
        children = [module.first, *(block for network in module.rest for block in network.children())]
    for child in children:
        yield from _parts(child, side)


def _tables(model: nn.Module) -> Iterator[tuple[str, ByLevel]]:
    for prefix, part in model.named_modules():
        if isinstance(part, ByLevel) and part.factors:
            yield from ((f"{prefix}.{table}" if prefix else table, part) for table in part.tables)


def _grow(table: Tensor, before: Tensor | None, part: ByLevel, known: Sequence[int], *, learned: bool) -> None:
    start = taken = 0
    for factor in part.factors:
        rows, n_known = table[start : start + factor.n_levels], known[factor.column]
        start += factor.n_levels
        if n_known == 1 and not part.single_level_has_row:
            rows.zero_()
            continue
        assert before is not None, "a table of several levels is among the weights of the reference"
        old = before[taken : taken + n_known]
        taken += n_known
        rows[:n_known] = old
        if learned:
            rows[n_known:] = old.mean(0)


def _new_rows(part: ByLevel, known: Sequence[int]) -> tuple[slice, ...]:
    runs, start = [], 0
    for factor in part.factors:
        if factor.n_levels > known[factor.column]:
            runs.append(slice(start + known[factor.column], start + factor.n_levels))
        start += factor.n_levels
    return tuple(runs)
