"""How many rows of logits are held at a time.

A chunk of rows is one operand of the gradients' GEMMs, so a larger one reads and writes the weight
gradient less often. The teacher's logits are needed by the row kernel alone; where memory is better
spent on the chunk they are made for a piece of it at a time.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import torch

BUDGET_VARIABLE = "FASTDISTILL_MEMORY_BUDGET"
"""Environment variable: MiB for the logits of both sides, instead of the policy's."""

_TILE_ROWS, _TILE_COLUMNS = 128, 256
"""Of the result of a GEMM, in one multiprocessor of a GPU."""


class ChunkPlan(NamedTuple):
    """Rows of a chunk, and of the pieces in which the teacher and the row kernel go through it."""

    chunk: int
    piece: int


class _Policy(NamedTuple):
    budget_mib: int
    multiple: int  # of rows: what the GEMMs are made of
    pieces: int  # at most, per chunk, for a teacher whose logits are made
    least_piece: int  # rows; the GEMMs of smaller ones are slow


_POLICIES = {"cpu": _Policy(160, 16, 1, 1), "cuda": _Policy(1280, _TILE_ROWS, 8, 512)}


def plan_chunks(
    rows: int,
    vocab: int,
    width: int,
    logits: torch.dtype,
    device: torch.device,
    *,
    teacher_is_made: bool,
    chunk_size: int | None = None,
) -> ChunkPlan:
    """The plan for ``rows`` rows of (vocab,) logits of hidden states (width,).

    ``chunk_size`` is the user's word for the rows of a chunk.
    """
    if chunk_size is None:
        fitting = int(_budget(device) / (vocab * logits.itemsize))
        most = fitting - _piece_beside(fitting, device) if teacher_is_made else fitting
        chunk = _at_most(rows, most, device)
        if device.type == "cuda" and chunk < rows:
            processors = torch.cuda.get_device_properties(device).multi_processor_count
            chunk = fewest_waves(rows, chunk, width, processors)
        elif chunk < rows:
            chunk = evenly(rows, chunk, _POLICIES[device.type].multiple)
    else:
        chunk = max(1, min(rows, chunk_size))
    return ChunkPlan(chunk, _piece_of(chunk, device) if teacher_is_made else chunk)


def _piece_beside(fitting: int, device: torch.device) -> int:
    """Rows of a piece that leave the chunk the rest of those that fit."""
    policy = _POLICIES[device.type]
    half = -(-fitting // 2)
    return max(-(-fitting // (policy.pieces + 1)), min(policy.least_piece, half))


def _piece_of(chunk: int, device: torch.device) -> int:
    policy = _POLICIES[device.type]
    if policy.pieces == 1:
        return chunk
    return _whole(max(chunk // policy.pieces, min(policy.least_piece, chunk)), device)


def rows_that_fit(rows: int, bytes_per_row: float, device: torch.device) -> int:
    """How many of the rows fit into the budget: at least one, and a good multiple if possible."""
    return _at_most(rows, int(_budget(device) / bytes_per_row), device)


def _at_most(rows: int, most: int, device: torch.device) -> int:
    return max(1, min(rows, _whole(most, device)))


def evenly(rows: int, most: int, multiple: int) -> int:
    """The size of the fewest chunks of at most ``most`` rows, when they are as good as equal."""
    each = -(-rows // -(-rows // most))
    return min(most, -(-each // multiple) * multiple)


def fewest_waves(rows: int, most: int, width: int, processors: int) -> int:
    """The chunk size in (most / 2, most] whose hidden gradients take the fewest waves of tiles.

    The (chunk, width) result is made tile by tile, ``processors`` at a time; the last, partly
    filled, wave takes as long as a full one. Of equals the largest: fewer chunks.
    """

    def waves(chunk: int) -> int:
        whole, rest = divmod(rows, chunk)
        return whole * waves_of(chunk, width, processors) + waves_of(rest, width, processors)

    candidates = range(most, most // 2, -_TILE_ROWS)
    return min(candidates, key=waves)


def waves_of(rows: int, width: int, processors: int) -> int:
    """How often ``processors`` must make a tile each until a (rows, width) result is complete."""
    tiles = -(-rows // _TILE_ROWS) * -(-width // _TILE_COLUMNS)
    return -(-tiles // processors)


def _whole(rows: int, device: torch.device) -> int:
    """``rows``, or a little less: a multiple of what the GEMMs are made of."""
    for multiple in (_POLICIES[device.type].multiple, 16):
        if rows >= multiple:
            return rows // multiple * multiple
    return max(1, rows)


def _budget(device: torch.device) -> float:
    """In bytes."""
    given = os.environ.get(BUDGET_VARIABLE)
    if not given:
        return _POLICIES[device.type].budget_mib * 2**20
    try:
        mib = float(given)
    except ValueError:
        mib = 0.0
    if not 0 < mib < math.inf:
        raise ValueError(f"{BUDGET_VARIABLE} must be a number of MiB > 0, got {given!r}")
    return mib * 2**20
