"""Every error: its type, and a message that names the argument, what was expected and what came."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from cases import TEACHERS, error_name, make_teacher, randn, top_k

import fastdistill as fd
from fastdistill import _native

N, V, D = 4, 33, 8


def logits_call(**changes):
    arguments = {"student_logits": randn(N, V), "teacher": randn(N, V, seed=1), **changes}
    return fd.distillation_loss(**arguments)


def linear_call(**changes):
    arguments = {
        "student_hidden": randn(N, D),
        "student_weight": randn(V, D, seed=1),
        "teacher": randn(N, V, seed=2),
        **changes,
    }
    return fd.linear_distillation_loss(**arguments)


LOG_P = torch.log_softmax(randn(N, V), -1)
LISTED = top_k(LOG_P, 3)
IDS, LOG_PROBS = LISTED.ids, LISTED.log_probs
LABELS = torch.arange(N)
WITH_TAIL = replace(LISTED, tail_log_prob=torch.zeros(N))


def with_id(wrong, row, slot):
    ids = IDS.clone()
    ids[row, slot] = wrong
    return ids


# Of both losses: exception, message, arguments. A message names the argument and what came.
OPTION_ERRORS = [
    (ValueError, "divergence must be one of forward_kl, .*; got 'kl'", {"divergence": "kl"}),
    (TypeError, "divergence must be a divergence or its name, got int", {"divergence": 3}),
    (TypeError, "divergence must be .*, got type", {"divergence": fd.ForwardKL}),
    (ValueError, "temperature must be finite and > 0, got 0.0", {"temperature": 0.0}),
    (ValueError, "temperature must be finite and > 0, got -1", {"temperature": -1}),
    (ValueError, "temperature must be finite and > 0, got inf", {"temperature": math.inf}),
    (ValueError, "temperature must be finite and > 0, got nan", {"temperature": math.nan}),
    (TypeError, "temperature must be a number, got str", {"temperature": "hot"}),
    (TypeError, "temperature must be a number, got Tensor", {"temperature": torch.tensor(1.0)}),
    (ValueError, "soft_weight must be finite and >= 0, got -1.0", {"soft_weight": -1.0}),
    (ValueError, "hard_weight must be finite and >= 0, got nan", {"hard_weight": math.nan}),
    (TypeError, "soft_weight must be a number, got str", {"soft_weight": "1"}),
    (ValueError, "hard_weight = 0.5 needs labels, got None", {"hard_weight": 0.5}),
    (
        ValueError,
        r"reduction must be one of \('none', 'sum', 'mean'\), got 'batchmean'",
        {"reduction": "batchmean"},
    ),
    (ValueError, "student_softcap must be finite and > 0, got 0.0", {"student_softcap": 0.0}),
    (ValueError, "student_scale must be finite and > 0, got -2.0", {"student_scale": -2.0}),
    (ValueError, "student_valid_vocab must be None or >= 1, got 0", {"student_valid_vocab": 0}),
    (TypeError, "student_valid_vocab must be an integer, got float", {"student_valid_vocab": 7.0}),
    (TypeError, "ignore_index must be an integer, got NoneType", {"ignore_index": None}),
    (
        ValueError,
        "valid_vocab must be at most the vocabulary size, got 34 and 33",
        {"student_valid_vocab": 34},
    ),
    (
        ValueError,
        "teacher valid_vocab and student_valid_vocab must agree, got 30 and 31",
        {"teacher": fd.TeacherLogits(randn(N, V), valid_vocab=30), "student_valid_vocab": 31},
    ),
    (
        ValueError,
        "num_items is the divisor of reduction=\"mean\", got reduction='sum'",
        {"num_items": 3, "reduction": "sum"},
    ),
    (ValueError, "num_items must be finite and > 0, got 0", {"num_items": 0}),
    (TypeError, "num_items must be a number, got str", {"num_items": "8"}),
    (ValueError, r"num_items must be 0-d, got shape \(2,\)", {"num_items": torch.ones(2)}),
]
TOKEN_ERRORS = [
    (ValueError, r"labels must have shape \(4,\), got \(3,\)", {"labels": LABELS[:3]}),
    (TypeError, "labels must be int64, got torch.int32", {"labels": LABELS.int()}),
    (TypeError, "labels must be a tensor, got list", {"labels": [0, 1, 2, 3]}),
    (
        ValueError,
        r"labels must be in \[0, 33\) or ignore_index, got 33",
        {"labels": torch.tensor([0, -100, 33, 1]), "hard_weight": 0.5},
    ),
    (
        ValueError,
        r"labels must be in \[0, 33\) or ignore_index, got -100",
        {"labels": torch.tensor([0, -100, 3, 1]), "hard_weight": 0.5, "ignore_index": -1},
    ),
    (
        ValueError,
        r"labels must be in \[0, 30\) or ignore_index, got 30",
        {
            "labels": torch.tensor([0, 30, 3, 1]),
            "hard_weight": 0.5,
            "student_valid_vocab": 30,
        },
    ),
    (ValueError, r"mask must have shape \(4,\), got \(4, 1\)", {"mask": torch.ones(4, 1) > 0}),
    (TypeError, "mask must be bool, got torch.int64", {"mask": LABELS}),
    (TypeError, "mask must be a tensor, got list", {"mask": [True] * 4}),
    (ValueError, r"weights must have shape \(4,\), got \(1,\)", {"weights": torch.ones(1)}),
    (TypeError, "weights must be floating point, got torch.int64", {"weights": LABELS}),
    (TypeError, "weights must be a tensor, got float", {"weights": 0.5}),
    (
        ValueError,
        "labels must be on the student's device cpu, got meta",
        {"labels": LABELS.to("meta")},
    ),
    (
        ValueError,
        "mask must be on the student's device cpu, got meta",
        {"mask": (LABELS > 0).to("meta")},
    ),
    (
        ValueError,
        "^weights must be on the student's device cpu, got meta",
        {"weights": torch.ones(4, device="meta")},
    ),
]
TEACHER_ERRORS = [
    (TypeError, "teacher must be a tensor, TeacherLogits, .*, got NoneType", {"teacher": None}),
    (TypeError, "logits must be float32, .*, got torch.int64", {"teacher": IDS}),
    (
        TypeError,
        "logits must be float32, bfloat16, float16 or float64, got torch.float8_e4m3fn",
        {"teacher": LOG_P.to(torch.float8_e4m3fn)},
    ),
    (
        ValueError,
        r"teacher ids must be distinct and in \[0, 33\), .*; got 33 in row 1, slot 2",
        {"teacher": fd.TopKTeacher(with_id(33, row=1, slot=2), LOG_PROBS)},
    ),
    (
        ValueError,
        r"teacher ids must be distinct and in \[0, 33\), .*; got -2 in row 0, slot 0",
        {"teacher": fd.TopKTeacher(torch.full_like(IDS, -2), LOG_PROBS)},
    ),
    (
        ValueError,
        r"teacher ids must be distinct and in \[0, 33\), .*; got 5 in row 0, slot 1",
        {"teacher": fd.TopKTeacher(torch.full_like(IDS, 5), LOG_PROBS)},
    ),
    (
        ValueError,
        r"teacher ids must be distinct and in \[0, 33\), .*; got 5 in row 0, slot 1",
        {"teacher": fd.SampledTeacher(torch.full_like(IDS, 5), LOG_PROBS.exp())},
    ),
    (
        ValueError,
        r"teacher ids must be distinct and in \[0, 2\), .*; got \d+ in row 0, slot \d",
        {"teacher": LISTED, "student_valid_vocab": 2},
    ),
    (
        ValueError,
        r"teacher ids must have the student's leading shape \(4,\), got \(3, 3\)",
        {"teacher": fd.TopKTeacher(IDS[:3], LOG_PROBS[:3])},
    ),
    (
        ValueError,
        r"teacher hidden must have the student's leading shape \(4,\), got \(2, 6\)",
        {"teacher": make_teacher("head", 2, V)},
    ),
    (
        ValueError,
        "student and teacher must have the same vocabulary size, got 33 and 40",
        {"teacher": make_teacher("head", N, 40)},
    ),
    (
        ValueError,
        r"ReverseKL\(\) is infinite where the teacher is zero: tail=\"zero\"",
        {"teacher": top_k(LOG_P, 3, tail="zero"), "divergence": "reverse_kl"},
    ),
    (
        ValueError,
        r"SymmetricKL\(weight=0.5\) is infinite where the teacher is zero",
        {"teacher": top_k(LOG_P, 3, tail="zero"), "divergence": "symmetric_kl"},
    ),
    (
        ValueError,
        "tail mass of a teacher listed at temperature 1.0 is not known at temperature 2.0",
        {"teacher": LISTED, "temperature": 2.0},
    ),
    (
        ValueError,
        r"SampledTeacher needs a divergence that is linear .* \(ForwardKL\), got JensenShannon",
        {"teacher": make_teacher("sampled", N, V), "divergence": "jensen_shannon"},
    ),
    (
        ValueError,
        "SampledTeacher weights are probabilities at temperature 1, got temperature 2.0",
        {"teacher": make_teacher("sampled", N, V), "temperature": 2.0},
    ),
    *(
        (
            ValueError,
            f"^teacher {field.name} must be on the student's device cpu, got meta",
            {"teacher": replace(teacher, **{field.name: getattr(teacher, field.name).to("meta")})},
        )
        for teacher in (*(make_teacher(kind, N, V) for kind in TEACHERS), WITH_TAIL)
        for field in fields(teacher)
        if isinstance(getattr(teacher, field.name), torch.Tensor)
    ),
]


@pytest.mark.parametrize("call", [logits_call, linear_call])
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    OPTION_ERRORS + TOKEN_ERRORS + TEACHER_ERRORS,
    ids=error_name,
)
def test_error(call, error, message, arguments):
    with pytest.raises(error, match=message):
        call(**arguments)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (
            ValueError,
            r"student_logits and teacher logits must have the same shape, got \(4, 33\) and \(4, 40\)",
            {"teacher": randn(4, 40)},
        ),
        (
            ValueError,
            r"student_logits and teacher logits must have the same shape, got \(4, 33\) and \(5, 33\)",
            {"teacher": randn(5, 33)},
        ),
        (
            TypeError,
            "student_logits must be a tensor, got ndarray",
            {"student_logits": np.ones((4, 33))},
        ),
        (TypeError, "student_logits must be float32, .*, got torch.int64", {"student_logits": IDS}),
        (
            ValueError,
            r"student_logits must have shape \(..., size\) with size >= 1, got \(\)",
            {"student_logits": torch.tensor(1.0)},
        ),
        (
            ValueError,
            r"student_logits must have shape .*, got \(4, 0\)",
            {"student_logits": torch.ones(4, 0), "teacher": torch.ones(4, 0)},
        ),
    ],
    ids=error_name,
)
def test_error_of_the_logits_loss(error, message, arguments):
    with pytest.raises(error, match=message):
        logits_call(**arguments)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (
            ValueError,
            r"student_hidden \(..., D\) and student_weight \(V, D\) .*, got \(4, 7\) and \(33, 8\)",
            {"student_hidden": randn(4, 7)},
        ),
        (ValueError, r"same D, got \(4, 8\) and \(8,\)", {"student_weight": randn(8)}),
        (
            TypeError,
            "same dtype outside autocast, got torch.bfloat16 and torch.float32",
            {"student_hidden": randn(4, 8).bfloat16()},
        ),
        (
            ValueError,
            r"student_bias must have shape \(33,\), got \(32,\)",
            {"student_bias": randn(32)},
        ),
        (TypeError, "student_bias must be a tensor, got list", {"student_bias": [0.0] * 33}),
        (TypeError, "student_bias must be .*, got torch.int64", {"student_bias": torch.arange(33)}),
        *(
            (
                ValueError,
                f"{name} must be on the student's device cpu, got meta",
                {name: torch.ones(*shape, device="meta")},
            )
            for name, shape in (("student_weight", (V, D)), ("student_bias", (V,)))
        ),
        (
            ValueError,
            "student and teacher must have the same vocabulary size, got 33 and 40",
            {"teacher": randn(4, 40)},
        ),
        (
            ValueError,
            r"teacher logits must have the student's leading shape \(4,\), got \(5, 33\)",
            {"teacher": randn(5, 33)},
        ),
        (ValueError, "chunk_size must be None or >= 1, got 0", {"chunk_size": 0}),
        (TypeError, "chunk_size must be an integer, got float", {"chunk_size": 2.5}),
        (
            ValueError,
            "logits_dtype must be None or torch.float32, got torch.bfloat16",
            {"logits_dtype": torch.bfloat16},
        ),
    ],
    ids=error_name,
)
def test_error_of_the_linear_loss(error, message, arguments):
    with pytest.raises(error, match=message):
        linear_call(**arguments)


@pytest.mark.parametrize("call", [logits_call, linear_call])
def test_nothing_is_computed_before_all_checks(call, monkeypatch):
    """An id or a label in the last row stops the call before the first."""
    monkeypatch.setattr(_native._C, "run", lambda **_: pytest.fail("a kernel ran"))
    chunk = {"chunk_size": 1} if call is linear_call else {}
    with pytest.raises(ValueError, match="teacher ids"):
        call(teacher=fd.TopKTeacher(with_id(V, row=-1, slot=-1), LOG_PROBS), **chunk)
    with pytest.raises(ValueError, match="labels"):
        call(labels=torch.tensor([0, 1, 2, V]), hard_weight=0.5, **chunk)


@pytest.mark.parametrize("call", [logits_call, linear_call])
def test_ids_of_uncounted_rows_may_be_anything(call):
    """Rows that are padded with one id, say."""
    mask = torch.tensor([True, True, False, True])
    padded = IDS.clone()
    padded[2] = 10**9
    teacher = fd.TopKTeacher(IDS, LOG_PROBS)
    for ids in (padded, padded.where(padded < V, 0)):
        loss = call(teacher=replace(teacher, ids=ids), mask=mask)
        assert torch.equal(loss, call(teacher=teacher, mask=mask))


def test_labels_of_uncounted_rows_may_be_anything():
    labels, mask = torch.tensor([0, 10**9, -100, 1]), torch.tensor([True, False, True, True])
    loss = logits_call(labels=labels, mask=mask, hard_weight=0.5)
    assert loss.isfinite()
