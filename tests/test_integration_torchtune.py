"""The loss of a torchtune recipe: its calling convention, and the values of its own losses."""

import pytest
import torch
import torch.nn.functional as F
from cases import randn

import fastdistill as fd
from fastdistill.integrations.torchtune import DistillationLoss

B, S, V, CHUNKS = 2, 9, 33, 4
LABELS = torch.arange(B * S).reshape(B, S) % V
LABELS[0, 2:5] = LABELS[1, 7:] = -100
STUDENT, TEACHER = randn(B, S, V, seed=1, scale=3.0), randn(B, S, V, seed=2, scale=3.0)

# As torchtune writes its losses: cross entropies, in its KDs called forward KL.
ROWS = {
    "forward_kl": lambda log_p, log_q: -(log_p.exp() * log_q).sum(-1),
    "reverse_kl": lambda log_p, log_q: (log_q.exp() * (log_q - log_p)).sum(-1),
}


def chunked(tensor):
    """As a model cuts its logits: chunks of 3, 2, 2 and 2 tokens."""
    return list(tensor.tensor_split(CHUNKS, dim=1))


def value_and_gradient(loss, cut=lambda logits: logits, labels=LABELS):
    student = STUDENT.clone().requires_grad_()
    value = loss(cut(student), cut(TEACHER), labels)
    return value.detach(), torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize("cut", [lambda logits: logits, chunked])
@pytest.mark.parametrize("name", ROWS)
def test_values_and_gradients_are_those_of_torchtune(name, cut):
    def torchtune(student, teacher, labels):
        rows = ROWS[name](F.log_softmax(teacher, -1), F.log_softmax(student, -1))
        return rows[labels != -100].mean()

    value, gradient = value_and_gradient(DistillationLoss(name, num_output_chunks=CHUNKS), cut)
    expected, expected_gradient = value_and_gradient(torchtune)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)
    if name == "forward_kl":
        entropy = torch.distributions.Categorical(logits=TEACHER).entropy()
        expected = expected - entropy[LABELS != -100].mean()
    torch.testing.assert_close(value, expected)


def test_a_flattened_batch_is_the_batch():
    loss = DistillationLoss(fd.SymmetricKL(0.3))
    flat = value_and_gradient(loss, lambda logits: logits.reshape(-1, V), LABELS.flatten())
    torch.testing.assert_close(flat, value_and_gradient(loss))


def test_options_and_ignore_index_reach_the_loss():
    labels = LABELS.masked_fill(LABELS == -100, 7)
    loss = DistillationLoss("jensen_shannon", ignore_index=7, temperature=2.0)
    value, _ = value_and_gradient(loss, chunked, labels)
    config = {"divergence": "jensen_shannon", "temperature": 2.0, "mask": labels != 7}
    torch.testing.assert_close(value, fd.distillation_loss(STUDENT, TEACHER, **config))


def test_the_recipe_reads_the_number_of_chunks():
    assert DistillationLoss().num_output_chunks == 8
    assert DistillationLoss(num_output_chunks=3).num_output_chunks == 3


@pytest.mark.parametrize("cut", [lambda logits: logits, chunked])
def test_a_batch_without_tokens_has_zero_loss_and_gradient(cut):
    value, gradient = value_and_gradient(DistillationLoss(), cut, torch.full((B, S), -100))
    assert value == 0
    assert not gradient.any()


def test_wrong_arguments_are_named():
    loss, chunks = DistillationLoss(), chunked(STUDENT)
    with pytest.raises(TypeError, match="both lists of chunks, got list and Tensor"):
        loss(chunks, TEACHER, LABELS)
    with pytest.raises(ValueError, match="same number of chunks, got 4 and 3"):
        loss(chunks, chunks[:3], LABELS)
    with pytest.raises(ValueError, match=r"labels \(B, S\) .* got S = 8 and 9"):
        loss(chunks, chunks, LABELS[:, :8])
    with pytest.raises(TypeError, match="reduction"):
        DistillationLoss(reduction="sum")
