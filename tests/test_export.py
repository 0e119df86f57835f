"""Evaluation as an exported program: losses and metrics of any number of tokens."""

import io

import pytest
import torch
from cases import linear_inputs, make_teacher, randn
from torch import nn

import fastdistill as fd

# Dynamo instantiates torch.autograd.Function itself when it traces one.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

V, D = 33, 13
TEACHERS = ("logits", "head", "bucket")


class Evaluation(nn.Module):
    """Loss and metrics of hidden states (N, D), labels (N,) and the tensors of a teacher."""

    def __init__(self, form, kind):
        super().__init__()
        self.form, self.make_teacher = form, type(make_teacher(kind, 1, V))
        self.head = nn.Linear(D, V)
        head = linear_inputs(1, D, V)
        self.head.weight.data, self.head.bias.data = head["student_weight"], head["student_bias"]

    def forward(self, hidden, labels, *teacher):
        options = {"hard_weight": 0.5, "return_metrics": True}
        teacher = self.make_teacher(*teacher)
        if self.form == "logits":
            loss, metrics = fd.distillation_loss(self.head(hidden), teacher, labels, **options)
        else:
            loss, metrics = fd.linear_distillation_loss(
                hidden, self.head.weight, teacher, labels, student_bias=self.head.bias, **options
            )
        return loss, metrics.soft_loss, metrics.hard_loss, metrics.student_entropy, metrics.counted


def batch(kind, rows):
    """What `Evaluation` takes; the first token is not counted."""
    labels = torch.arange(rows) * 7 % V
    labels[0] = -100
    teacher = make_teacher(kind, rows, V)
    tensors = [value for value in vars(teacher).values() if isinstance(value, torch.Tensor)]
    return randn(rows, D), labels, *tensors


@torch.no_grad()
def export(module, kind, *, strict):
    """The program of any number of rows."""
    example, rows = batch(kind, 7), torch.export.Dim("rows", min=2, max=1024)
    dynamic = [{0: rows} if tensor.shape[0] == 7 else None for tensor in example]
    shapes = {"hidden": dynamic[0], "labels": dynamic[1], "teacher": tuple(dynamic[2:])}
    return torch.export.export(module, example, dynamic_shapes=shapes, strict=strict)


def saved_and_loaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind_", TEACHERS)
@pytest.mark.parametrize("form", ["logits", "linear"])
def test_exported_program_is_the_module(form, kind_, strict):
    """Also after a round trip through a file."""
    module = Evaluation(form, kind_)
    program = export(module, kind_, strict=strict)
    for exported in (program, saved_and_loaded(program)):
        for rows in (2, 7, 40):
            inputs = batch(kind_, rows)
            torch.testing.assert_close(exported.module()(*inputs), module(*inputs))


@pytest.mark.parametrize("form", ["logits", "linear"])
def test_exported_program_cannot_be_trained(form):
    """Its ops stand alone, and must not pass for constants."""
    exported = export(Evaluation(form, "head"), "head", strict=False).module()
    loss, *_ = exported(*batch("head", 7))
    with pytest.raises(RuntimeError, match="cannot be trained"):
        (loss + exported.head.weight.square().sum()).backward()
