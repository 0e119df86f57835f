"""Speculative decoding: what is counted, and that the text stays the teacher's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("typer", reason="needs fastdistill[distill]")
pytest.importorskip("transformers", reason="needs fastdistill[distill]")

from fastdistill.cli.models import load_teacher, prune_depth
from fastdistill.cli.recipes.speculative import (
    DRAFTED,
    accepted_share,
    decode_alone,
    in_dtype,
    speculate,
)

pytest_plugins = ["cli_runs"]
pytestmark = pytest.mark.filterwarnings("default:::transformers")

NEW_TOKENS = 40


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Any:
    return load_teacher(tiny_teacher, torch.float32)[0]


@pytest.fixture(scope="module")
def draft(teacher: Any) -> Any:
    """Half of the teacher's layers, in training mode, where it has dropout."""
    return prune_depth(teacher, [0, 3])


@pytest.fixture(scope="module")
def prompts(teacher: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(teacher.config.vocab_size, (6, 8), generator=generator)


@pytest.fixture
def texts(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the teacher generates from now on, (1, length) each."""
    generated = []
    whole = type(teacher).generate

    def generate(model: Any, **options: Any) -> Any:
        out = whole(model, **options)
        if model is teacher:
            generated.append(out)
        return out

    monkeypatch.setattr(type(teacher), "generate", generate)
    return generated


@pytest.mark.parametrize("sample", [False, True])
def test_a_model_accepts_all_of_its_own_draft(teacher: Any, prompts: Tensor, sample: bool) -> None:
    found = speculate(teacher, teacher, prompts, new_tokens=NEW_TOKENS, sample=sample, seed=0)
    assert found.tokens == 6 * NEW_TOKENS
    assert found.rejected == (0,) * 6
    assert found.accepted == (NEW_TOKENS * DRAFTED / (DRAFTED + 1),) * 6
    assert found.rounds == 6 * NEW_TOKENS / (DRAFTED + 1)
    assert (found.acceptance, found.standard_error, found.tokens_per_round) == (1, 0, DRAFTED + 1)
    assert found.tokens_per_second > 0


def test_greedy_text_is_the_teachers_whatever_the_draft(
    teacher: Any, draft: Any, prompts: Tensor, texts: list[Tensor]
) -> None:
    found = speculate(teacher, draft, prompts, new_tokens=NEW_TOKENS, sample=False, seed=0)
    assert 0 < found.acceptance < 1
    decode_alone(teacher, prompts, new_tokens=NEW_TOKENS, sample=False, seed=0)
    assert [len(text[0]) for text in texts] == [8 + NEW_TOKENS] * 12
    assert all(map(torch.equal, texts[:6], texts[6:]))


@torch.no_grad()
def chances(teacher: Any, draft: Any, texts: Tensor) -> Tensor:
    """sum min(p, q) for each token of ``texts`` (texts, length) but the first."""
    draft.eval()
    p, q = (model(texts).logits.softmax(-1)[:, :-1] for model in (teacher, draft))
    return torch.minimum(p, q).sum(-1)


def test_sampled_tokens_are_accepted_with_the_chance_of_their_context(
    teacher: Any, draft: Any, prompts: Tensor, texts: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.candidate_generator import AssistedCandidateGenerator as Generator

    outcomes = []  # (end, proposed, accepted) of each round of each text
    original = Generator.update_candidate_strategy

    def record(self: Any, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        assert not self.logits_processor  # both sample from all of their distribution
        outcomes.append((len(texts), input_ids.shape[1], scores.shape[1] - 1, int(num_matches)))
        original(self, input_ids, scores, num_matches)

    monkeypatch.setattr(Generator, "update_candidate_strategy", record)
    found = speculate(teacher, draft, prompts.repeat(4, 1), new_tokens=56, sample=True, seed=0)
    chance = chances(teacher, draft, torch.cat(texts))
    examined = torch.zeros_like(chance, dtype=torch.bool)
    for text, end, proposed, accepted in outcomes:
        first = end - accepted - 2  # predicts the round's first token
        examined[text, first : first + min(accepted + 1, proposed)] = True
    own = [sum(n for text, *_, n in outcomes if text == number) for number in range(24)]
    assert found.accepted == tuple(own)
    assert sum(found.accepted) + sum(found.rejected) == examined.sum()
    whole = [accepted + 1 for *_, proposed, accepted in outcomes if proposed == DRAFTED]
    assert (found.rounds, found.tokens_per_round) == (len(whole), sum(whole) / len(whole))
    mean = chance[examined].mean()
    # Each token is accepted or not by a draw of its own, given its context: the variances add up.
    error = (chance * (1 - chance))[examined].sum().sqrt() / examined.sum()
    assert error < 0.02
    assert abs(found.acceptance - mean) < 3.5 * error


def test_share_of_prompts_that_differ() -> None:
    share, error = accepted_share([1, 3], [3, 1])
    assert share == 0.5
    # Shares of 0.25 and 0.75: the standard error of their mean is their deviation / sqrt(2).
    assert error == pytest.approx(torch.tensor([0.25, 0.75]).std().item() / 2**0.5)
    # Tokens that always agree are one, not two: more of them do not tell more.
    assert accepted_share([2, 6], [6, 2]) == pytest.approx((share, error))


def test_copy_is_what_loading_in_the_dtype_gives(teacher: Any, tiny_teacher: Path) -> None:
    loaded = load_teacher(tiny_teacher, torch.bfloat16)[0]
    copied = in_dtype(teacher, torch.bfloat16)
    ids = torch.arange(64)[None]
    assert torch.equal(copied(ids).logits, loaded(ids).logits)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    assert teacher.dtype == torch.float32


def test_models_are_left_as_they_were(teacher: Any, draft: Any, prompts: Tensor) -> None:
    draft.train()
    kept = teacher.generation_config, draft.generation_config
    for seed in (0, 0, 1):
        speculate(teacher, draft, prompts[:2], new_tokens=8, sample=True, seed=seed)
    assert draft.training
    assert not teacher.training
    assert teacher.generation_config is kept[0]
    assert draft.generation_config is kept[1]
    assert not teacher.lm_head._forward_pre_hooks


def test_dropout_is_off(teacher: Any, draft: Any, prompts: Tensor) -> None:
    def accepted() -> tuple[int, ...]:
        return speculate(teacher, draft, prompts, new_tokens=24, sample=False, seed=0).accepted

    draft.eval()
    expected = accepted()
    draft.train()
    assert accepted() == expected


def test_the_seed_decides(teacher: Any, draft: Any, prompts: Tensor, texts: list[Tensor]) -> None:
    for seed in (0, 0, 1):
        speculate(teacher, draft, prompts[:2], new_tokens=8, sample=True, seed=seed)
    assert torch.equal(texts[0], texts[2])
    assert torch.equal(texts[1], texts[3])
    assert not torch.equal(texts[0], texts[4])


def test_too_little_to_tell(teacher: Any, draft: Any, prompts: Tensor) -> None:
    with pytest.raises(ValueError, match="two prompts or more, got 1"):
        speculate(teacher, draft, prompts[:1], new_tokens=8, sample=True, seed=0)
    with pytest.raises(ValueError, match="no round is whole in 4 tokens"):
        speculate(teacher, draft, prompts, new_tokens=DRAFTED, sample=True, seed=0)
