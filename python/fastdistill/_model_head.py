"""What a loss needs of a Hugging Face causal model, without the logits that it would make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_NOT_FOR_THE_MODEL = ("labels", "shift_labels", "num_items_in_batch", "skip_logits")
"""Inputs of a training step that make a model compute a loss of its own."""


class ModelHead(NamedTuple):
    """The last hidden states of a batch, and how the model makes logits of them."""

    hidden: Tensor  # (..., D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    softcap: float | None
    scale: float
    valid_vocab: int | None


def run_to_head(model: nn.Module, inputs: dict[str, Any], valid_vocab: int | None) -> ModelHead:
    """Run ``model`` up to its head.

    The model is called as it is, with every wrapper around it, because wrappers have work to do in
    their forward (DistributedDataParallel prepares its reduction there). Only the head stands
    aside.
    """
    inner = _unwrap(model)
    head, linear = _find_head(inner)
    config = inner.config.get_text_config()
    softcap: float | None = getattr(config, "final_logit_softcapping", None)
    scale = _logit_scale(config)
    inputs = {name: value for name, value in inputs.items() if name not in _NOT_FOR_THE_MODEL}
    if getattr(config, "use_cache", False):
        inputs.setdefault("use_cache", False)
    with _standing_aside(head, linear) as seen:
        output = model(**inputs)
    if len(seen) != 1:
        raise ValueError(
            f"{type(inner).__name__} must call its head once for its logits, "
            f"it called it {len(seen)} times; give hidden states and head yourself"
        )
    if not torch.compiler.is_compiling():  # a graph cannot look at values
        _check_transform(inner, getattr(output, "logits", output[0]), softcap, scale)
    if valid_vocab is None and linear.weight.shape[0] > config.vocab_size:
        valid_vocab = config.vocab_size
    if linear.weight.device.type == "meta":
        raise ValueError(
            f"the head of {type(inner).__name__} must be in memory, a device map has offloaded it"
        )
    hidden = seen[-1].to(linear.weight.device)  # another one's where a device map spreads layers
    return ModelHead(hidden, linear.weight, linear.bias, softcap, scale, valid_vocab)


def _unwrap(model: nn.Module) -> Any:
    """The model under torch.compile, the wrappers of data parallelism, and peft."""
    inner: Any = model
    while (wrapped := getattr(inner, "_orig_mod", getattr(inner, "module", None))) is not None:
        inner = wrapped
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    if not hasattr(inner, "get_output_embeddings"):
        raise TypeError(
            f"model must be a Hugging Face model with output embeddings, got {type(inner).__name__}"
        )
    return inner


def _find_head(model: Any) -> tuple[nn.Module, nn.Linear]:
    """The module that the model calls for its logits, and the linear map that it is."""
    head = model.get_output_embeddings()
    linear = head
    if hasattr(head, "modules_to_save"):  # peft trains a copy of the whole module
        saved, adapters = head.modules_to_save, head.active_adapters
        linear = head.original_module if head.disable_adapters else saved[adapters[0]]
    if not isinstance(linear, nn.Linear):
        raise TypeError(
            f"the head of {type(model).__name__} must be a torch.nn.Linear, "
            f"got {type(linear).__module__}.{type(linear).__name__}"
        )
    return head, linear


def _logit_scale(config: Any) -> float:
    """Granite divides logits by ``logits_scaling``, Cohere multiplies them by ``logit_scale``.

    Other models have a ``logit_scale`` of None, or a word, which they make nothing of.
    """
    factor, divisor = (
        float(value) if isinstance(value := getattr(config, name, None), (int, float)) else 1.0
        for name in ("logit_scale", "logits_scaling")
    )
    return factor / divisor


# ---- the head stands aside ----------------------------------------------------------------------

_PROBE = (-60.0, -1.0, 0.0, 0.5, 25.0)
"""Logits that the model gets in place of its head's: what it makes of them is its transform."""


class _Answer(torch.autograd.Function):
    """The probe, with what the head uses behind it in the graph.

    DistributedDataParallel looks behind the output of a model for the parameters that a backward
    will reach; no gradient ever arrives here.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *used: Tensor) -> Tensor:
        return torch.tensor(_PROBE).expand(*[1] * (hidden.dim() - 1), -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)


@contextmanager
def _standing_aside(head: nn.Module, linear: nn.Linear) -> Iterator[list[Tensor]]:
    """While it lasts, ``head`` notes what it is given and answers with the probe."""
    seen: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        used = linear.parameters()
        return _Answer.apply(hidden, *used)  # type: ignore[no-any-return, no-untyped-call]

    own = head.__dict__  # Dynamo follows what happens there, but not `del head.forward`
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield seen
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def _check_transform(model: Any, answer: Tensor, softcap: float | None, scale: float) -> None:
    """Raise unless the model made of the probe what softcap and scale say."""
    expected = torch.tensor(_PROBE) * scale
    if softcap is not None:
        expected = softcap * torch.tanh(expected / softcap)
    found = answer.detach().float().cpu().flatten()
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{type(model).__name__} does more to its logits than softcap={softcap} and "
            f"scale={scale} of its configuration: it makes {found.tolist()} of "
            f"{list(_PROBE)}; give hidden states and head yourself"
        )
