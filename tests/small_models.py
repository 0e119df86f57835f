"""Models of some thousand parameters, their batches and teachers: for what wraps a training step."""

import torch
from cases import make_teacher
from torch import nn

import fastdistill as fd

V, D = 33, 16


class Student(nn.Module):
    """Token ids (B, S) to hidden states (B, S, D) of ``dtype``; ``logits`` applies the head."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.dtype = dtype
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, D)
        self.block = nn.Sequential(nn.Linear(D, 2 * D), nn.SiLU(), nn.Linear(2 * D, D))
        self.norm = nn.LayerNorm(D)
        self.head = nn.Linear(D, V)

    def forward(self, ids):
        hidden = self.embedding(ids)
        return self.norm(hidden + self.block(hidden)).to(self.dtype)

    def logits(self, ids):
        return self.head(self(ids))


def llama(tied=True):
    """A Llama of two layers; transformers must be there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=2 * D, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        initializer_range=0.3, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tokens(batch=2, length=5, seed=0):
    """Ids (B, S), and as labels the following ids; the last position has none."""
    ids = torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    return ids, labels


def teacher_of(kind, ids, seed=1):
    return make_teacher(kind, *ids.shape, V, seed=seed)


def linear_loss(student, hidden, teacher, labels, **options):
    """The loss of hidden states that ``student`` gave."""
    return fd.linear_distillation_loss(
        hidden, student.head.weight, teacher, labels, student_bias=student.head.bias,
        hard_weight=0.5, **options,
    )  # fmt: skip


def loss_and_gradients(model, loss):
    """[loss, gradient by each parameter], taken by a backward pass."""
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def assert_same(actual, expected, rtol=1e-5, atol=1e-7):
    torch.testing.assert_close(list(actual), list(expected), rtol=rtol, atol=atol)
