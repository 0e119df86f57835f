"""How many rows of logits are held at a time, and that it changes nothing but memory."""

import itertools

import pytest
import torch

import fastdistill as fd
from fastdistill import _chunks, _head
from fastdistill._chunks import evenly, fewest_waves, plan_chunks, rows_that_fit

CPU = torch.device("cpu")
GEMM_ROWS = 128


@pytest.mark.parametrize("vocab_", [1, 49152, 151936, 2**27, 2**31])
def test_at_least_one_row_and_no_more_than_there_are(vocab_):
    for device, count in itertools.product(("cpu", "cuda"), (0, 1, 15, 4096)):
        fitting = rows_that_fit(count, 8 * vocab_, torch.device(device))
        assert 1 <= fitting <= max(1, count)


@pytest.mark.parametrize("teacher_is_made", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_both_sides_stay_within_the_budget(monkeypatch, device, teacher_is_made):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: GPU)
    vocab, rows = 151936, 65536
    plan = plan_chunks(
        rows, vocab, 2048, torch.float32, torch.device(device), teacher_is_made=teacher_is_made
    )
    held = plan.chunk + (plan.piece if teacher_is_made else 0)
    budget = _chunks._POLICIES[device].budget_mib * 2**20
    assert budget / 3 < 4 * vocab * held <= budget
    assert plan.chunk % 16 == 0
    if device == "cuda" and teacher_is_made:
        assert plan.piece % GEMM_ROWS == 0
        assert plan.piece < plan.chunk


@pytest.mark.parametrize("vocab_", [32000, 128256, 151936, 256000])
def test_no_piece_is_too_small_for_its_gemm(monkeypatch, vocab_):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: GPU)
    plan = plan_chunks(
        8192, vocab_, 2304, torch.bfloat16, torch.device("cuda"), teacher_is_made=True
    )
    assert _chunks._POLICIES["cuda"].least_piece <= plan.piece <= plan.chunk


class GPU:
    multi_processor_count = 132


@pytest.mark.parametrize("given", [1, 7, 128, 500, 10**9])
def test_the_users_chunk_size_is_taken(given):
    for device in (CPU, torch.device("cuda")):
        plan = plan_chunks(
            600, 1000, 8, torch.float32, device, teacher_is_made=True, chunk_size=given
        )
        assert plan.chunk == min(given, 600)
        assert 1 <= plan.piece <= plan.chunk
        assert device.type == "cuda" or plan.piece == plan.chunk


@pytest.mark.parametrize("width", [896, 2048, 2304, 3584, 4096])
@pytest.mark.parametrize("most", [1024, 1920, 4096])
def test_no_other_chunk_takes_fewer_waves(width, most):
    rows, processors = 8192, 132

    def waves(chunk):
        sizes = [min(chunk, rows - start) for start in range(0, rows, chunk)]
        tiles = [-(-size // 128) * -(-width // 256) for size in sizes]
        return sum(-(-count // processors) for count in tiles)

    chosen = fewest_waves(rows, most, width, processors)
    others = range(GEMM_ROWS, most + 1, GEMM_ROWS)
    assert chosen in others
    assert waves(chosen) == min(waves(chunk) for chunk in others if chunk > most / 2)


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("most", [16, 160, 432])
def test_chunks_on_a_cpu_are_few_and_even(most, multiple):
    for rows in range(most + 1, 5 * most, 7):
        size = evenly(rows, most, multiple)
        chunks = -(-rows // size)
        assert chunks == -(-rows // most)
        assert size <= most
        assert size % multiple == 0
        assert size - rows / chunks < multiple  # no size that would do is a whole step smaller


def test_a_plan_on_a_cpu_is_even():
    plan = plan_chunks(1024, 49152, 576, torch.float32, CPU, teacher_is_made=True)
    assert plan == (352, 352)  # 424 would fit


def test_a_budget_in_the_environment_is_taken(monkeypatch):
    monkeypatch.setenv(_chunks.BUDGET_VARIABLE, "10")
    assert rows_that_fit(10**6, 1000, CPU) == 10 * 2**20 // 1000 // 16 * 16
    for wrong in ("0", "-1", "inf", "nan", "much"):
        monkeypatch.setenv(_chunks.BUDGET_VARIABLE, wrong)
        with pytest.raises(ValueError, match=rf"FASTDISTILL_MEMORY_BUDGET .* got '{wrong}'"):
            rows_that_fit(10, 1000, CPU)


# ---- nothing but memory ------------------------------------------------------------------------


def gradients(**options):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight = randn(50, 6).requires_grad_(), randn(40, 6).requires_grad_()
    teacher = fd.TeacherHead(randn(50, 5), randn(40, 5))
    mask = torch.arange(50) % 5 != 0
    loss = fd.linear_distillation_loss(hidden, weight, teacher, mask=mask, **options)
    return loss, *torch.autograd.grad(loss, (hidden, weight), torch.ones_like(loss))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize(("chunk", "multiple", "pieces"), [(50, 4, 5), (17, 2, 4), (16, 16, 4)])
def test_pieces_of_a_chunk_give_what_the_whole_gives(
    monkeypatch, chunk, multiple, pieces, reduction
):
    whole = gradients(reduction=reduction)
    monkeypatch.setitem(_chunks._POLICIES, "cpu", _chunks._Policy(160, multiple, pieces, 1))
    cut = gradients(reduction=reduction, chunk_size=chunk)
    torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
@pytest.mark.parametrize("operand", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("height", [1, 7, 20])
def test_weight_gradient_is_the_sum_over_chunks(monkeypatch, height, operand, chunks):
    """Of narrow operands by pieces of the vocabulary; whatever lies in memory that is fresh."""
    vocab, width, half = 20, 4, torch.bfloat16
    monkeypatch.setitem(_head._PRODUCT_BYTES, "cpu", 4 * width * height)
    monkeypatch.setattr(
        _head, "fresh", lambda like, *shape, dtype: torch.full(shape, torch.nan, dtype=dtype)
    )
    precision = _head.Precision(half, operand, operand)
    weight = torch.zeros(vocab + 3, width, dtype=half)  # three rows of padding
    total = _head.WeightGradient(weight, vocab, precision, chunks)
    grad_logits = torch.randint(-8, 8, (chunks, 6, vocab)).to(operand)  # products, sums are exact
    hidden = torch.randint(-2, 2, (chunks, 6, width)).to(operand)
    for chunk in zip(grad_logits, hidden, strict=True):
        total.add(*chunk)
    expected = (grad_logits.float().mT @ hidden.float()).sum(0)
    assert total.result().dtype == half
    assert torch.equal(total.result()[:vocab].float(), expected)
    assert not total.result()[vocab:].any()


@pytest.mark.parametrize("pays", [True, False])
def test_bfloat16_is_multiplied_in_what_is_faster(monkeypatch, pays):
    monkeypatch.setattr(fd._C, "has_fast_bfloat16_gemms", lambda: pays)
    dtypes = _head.HeadDtypes(None, None)
    precision = _head.choose_precision(torch.empty(0, dtype=torch.bfloat16), dtypes)
    assert precision.compute == torch.bfloat16
    assert precision.operand == (torch.bfloat16 if pays else torch.float32)
    assert _head.choose_precision(torch.empty(0), dtypes).operand == torch.float32
