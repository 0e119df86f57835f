"""The configuration of a run: everything that its result depends on."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch

import fastdistill as fd
from fastdistill._head import bfloat16_pays_on_cpu

from .errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LossChoice = Literal["fused", "torch"]
DtypeChoice = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True)
class RunConfig:
    """Two runs of one configuration on one machine give the same losses and weights, bit for bit.

    Each field is the command-line option of the same name.
    """

    teacher: str
    layers: str
    text: str
    divergence: str
    temperature: float
    loss: LossChoice
    dtype: str
    steps: int
    batch: int
    block: int
    lr: float
    seed: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the GEMMs of teacher and student."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def check_same_run(
    config: DataclassInstance, saved: dict[str, object], options: Container[str] | None = None
) -> None:
    """Raise :class:`UserError` for the first field that differs from the checkpoint's.

    ``options`` are the fields that are options of the command line; None: all.
    """
    for name, value in asdict(config).items():
        if saved.get(name) != value:
            is_option = options is None or name in options
            what = f"--{name}" if is_option else f"{name}, which --recipe and --quick choose,"
            raise UserError(
                f"--resume: {what} is {value} here but {saved.get(name)} in the checkpoint; "
                "give the options of the interrupted run, or another --output"
            )


def resolve_dtype(choice: DtypeChoice) -> tuple[str, str]:
    """Return the dtype to compute in and the reason for it.

    bfloat16 GEMMs that are emulated, or in hardware that does not double the rate, are slower.
    """
    if choice != "auto":
        return choice, "as --dtype says"
    if bfloat16_pays_on_cpu():
        return "bfloat16", "this CPU multiplies bfloat16 matrices faster"
    return "float32", "this CPU would multiply bfloat16 matrices more slowly"


def check_divergence(name: str) -> None:
    """Raise :class:`UserError` unless ``name`` is a divergence that needs no parameters."""
    try:
        fd.get_divergence(name)
    except ValueError as error:
        raise UserError(f"--divergence: {error}") from None
    except TypeError:
        raise UserError(f"--divergence: {name} needs parameters that have no default") from None


def parse_layers(text: str) -> tuple[int, ...]:
    """Turn ``"0-9,20-29"`` into the layer numbers, ascending."""
    layers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            layers.extend(range(int(first), int(last or first) + 1))
        except ValueError:
            raise UserError(f"--layers must look like 0-9,20-29; got {text!r}") from None
    if not layers or layers != sorted(set(layers)):
        raise UserError(f"--layers must name each layer once, in ascending order; got {text!r}")
    return tuple(layers)
