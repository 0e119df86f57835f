from collections.abc import Sequence

ROW_STATS: int
ROW_METRICS: int
COMPILER: str
CUDA: str
VERSION: str

class DType:
    float32: DType
    bfloat16: DType
    float16: DType
    float64: DType

class Tail:
    bucket: Tail
    renormalize: Tail
    zero: Tail
    uniform: Tail

class Mode:
    forward: Mode
    backward: Mode
    fused: Mode

class Elementary:
    exp: Elementary
    log: Elementary
    tanh: Elementary

class Logits:
    def __init__(
        self, data: int, row_stride: int, dtype: DType, scale: float = ..., softcap: float = ...
    ) -> None: ...

class TopK:
    def __init__(
        self,
        ids: int,
        ids_stride: int,
        log_p: int,
        log_p_stride: int,
        k: int,
        tail: Tail,
        sums_to_one: bool,
        tail_log_prob: int = ...,
    ) -> None: ...

def run(
    *,
    mode: Mode,
    divergence: int,
    parameters: Sequence[float],
    rows: int,
    vocab: int,
    temperature: float,
    student: Logits,
    teacher: Logits | None = ...,
    top_k: TopK | None = ...,
    labels: int = ...,
    counted: int = ...,
    soft: int = ...,
    hard: int = ...,
    stats: int = ...,
    metrics: int = ...,
    grad_soft: int = ...,
    grad_hard: int = ...,
    gradient: Logits | None = ...,
    gradient_width: int = ...,
    threads: int = ...,
    stream: int | None = ...,
) -> None: ...
def bad_id(top_k: TopK, counted: int, rows: int, vocab: int) -> tuple[int, int, int] | None: ...
def advise_huge_pages(data: int, bytes: int) -> None: ...
def divergences() -> list[tuple[str, int]]: ...
def available_isas() -> list[str]: ...
def current_isa() -> str: ...
def select_isa(name: str) -> None: ...
def has_fast_bfloat16_gemms() -> bool: ...
def evaluate(function: Elementary, input: int, output: int, n: int) -> None: ...
