"""Errors of teachers and divergences that cannot be: raised where they are made."""

import math

import pytest
import torch
from cases import error_name, randn, top_k

import fastdistill as fd

LOG_P = torch.log_softmax(randn(4, 33), -1)
LISTED = top_k(LOG_P, 3)
IDS, LOG_PROBS = LISTED.ids, LISTED.log_probs
LABELS = torch.arange(4)


@pytest.mark.parametrize(
    ("error", "message", "build"),
    [
        (TypeError, "TeacherLogits: logits must be a tensor .*, got list", lambda: fd.TeacherLogits([1.0])),
        (ValueError, "TeacherLogits: softcap must be finite and > 0, got -1.0", lambda: fd.TeacherLogits(LOG_P, softcap=-1.0)),
        (TypeError, "TeacherLogits: scale must be a number, got str", lambda: fd.TeacherLogits(LOG_P, scale="2")),
        (TypeError, "TeacherLogits: valid_vocab must be an integer, got str", lambda: fd.TeacherLogits(LOG_P, valid_vocab="7")),
        (ValueError, "scale must be finite and > 0, got 0.0", lambda: fd.TeacherLogits(LOG_P, scale=0.0)),
        (ValueError, "valid_vocab must be None or >= 1, got 0", lambda: fd.TeacherLogits(LOG_P, valid_vocab=0)),
        (ValueError, r"same D, got \(4, 8\) and \(33, 9\)", lambda: fd.TeacherHead(randn(4, 8), randn(33, 9))),
        (ValueError, r"bias must have shape \(33,\), got \(1,\)", lambda: fd.TeacherHead(randn(4, 8), randn(33, 8), randn(1))),
        (TypeError, "TeacherHead: weight must be float32, .*, got torch.int32", lambda: fd.TeacherHead(randn(4, 8), torch.ones(33, 8).int())),
        (TypeError, "TeacherHead: bias must be a tensor .*, got list", lambda: fd.TeacherHead(randn(4, 8), randn(33, 8), [0.0])),
        (ValueError, r"TopKTeacher: ids and log_probs .*, got \(4, 3\) and \(4, 2\)", lambda: fd.TopKTeacher(IDS, LOG_PROBS[:, :2])),
        (ValueError, r"K >= 1, got \(4, 0\) and \(4, 0\)", lambda: fd.TopKTeacher(IDS[:, :0], LOG_PROBS[:, :0])),
        (TypeError, "TopKTeacher: ids must be integers, got torch.float32", lambda: fd.TopKTeacher(LOG_PROBS, LOG_PROBS)),
        (TypeError, "TopKTeacher: ids must be integers, got torch.bool", lambda: fd.TopKTeacher(IDS > 0, LOG_PROBS)),
        (TypeError, "TopKTeacher: log_probs must be float32, .*, got torch.int64", lambda: fd.TopKTeacher(IDS, IDS)),
        (TypeError, "ids must be a tensor or a numpy array, got list", lambda: fd.TopKTeacher([[0]], LOG_PROBS)),
        (ValueError, r"tail must be one of .*'bucket'.*, got 'rest'", lambda: fd.TopKTeacher(IDS, LOG_PROBS, tail="rest")),
        (ValueError, "temperature must be finite and > 0, got 0", lambda: fd.TopKTeacher(IDS, LOG_PROBS, temperature=0)),
        (ValueError, r"tail_log_prob must have shape \(4,\), got \(3,\)", lambda: fd.TopKTeacher(IDS, LOG_PROBS, tail_log_prob=torch.zeros(3))),
        (TypeError, "tail_log_prob must be float32, .*, got torch.int64", lambda: fd.TopKTeacher(IDS, LOG_PROBS, tail_log_prob=LABELS)),
        (ValueError, r"SampledTeacher: ids and weights .*, got \(4, 3\) and \(4, 2\)", lambda: fd.SampledTeacher(IDS, LOG_PROBS[:, :2])),
    ],
    ids=error_name,
)  # fmt: skip
def test_error_of_a_teacher(error, message, build):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("message", "build"),
    [
        (r"JensenShannon: beta must be in \(0, 1\), got 0.0", lambda: fd.JensenShannon(0.0)),
        (r"JensenShannon: beta must be in \(0, 1\), got 1.0", lambda: fd.JensenShannon(1.0)),
        (r"JensenShannon: beta must be in \(0, 1\), got nan", lambda: fd.JensenShannon(math.nan)),
        (r"SymmetricKL: weight must be in \[0, 1\], got 1.5", lambda: fd.SymmetricKL(1.5)),
        (r"SkewForwardKL: alpha must be in \(0, 1\), got 0", lambda: fd.SkewForwardKL(0)),
        (r"SkewReverseKL: alpha must be in \(0, 1\), got 1", lambda: fd.SkewReverseKL(1)),
        ("Renyi: alpha must be > 0 and not 1, got 1.0", lambda: fd.Renyi(1.0)),
        ("Renyi: alpha must be .*, got -0.5", lambda: fd.Renyi(-0.5)),
        ("Renyi: alpha must be .*, got inf", lambda: fd.Renyi(math.inf)),
        ("AlphaBeta: beta must be > 0, got 0.0", lambda: fd.AlphaBeta(1.0, 0.0)),
        ("AlphaBeta: alpha must be .*, got inf", lambda: fd.AlphaBeta(math.inf, 1.0)),
    ],
    ids=error_name,
)
def test_error_of_a_divergence(message, build):
    with pytest.raises(ValueError, match=message):
        build()
