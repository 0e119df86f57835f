"""The acceptance rate against speculative decoding, as transformers runs it on real models."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from unittest.mock import patch

import pytest
import torch

import fastdistill as fd

pytest.importorskip("typer", reason="needs fastdistill[distill]")
pytest.importorskip("transformers", reason="needs fastdistill[distill]")

pytest_plugins = ["cli_runs"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default:::transformers")]

KEPT_LAYERS = [*range(10), *range(20, 30)]
PROMPTS, PROMPT_TOKENS, NEW_TOKENS, DRAFTED = 32, 16, 44, 2
STANDARD_ERRORS = 3.5


@cache
def load(directory):
    """Teacher, student, and prompts, (PROMPTS, PROMPT_TOKENS)."""
    from fastdistill.cli import corpus, models

    teacher, tokenizer = models.load_teacher(directory, torch.float32)
    student = models.prune_depth(teacher, KEPT_LAYERS).eval().requires_grad_(False)
    for model in (teacher, student):
        model.generation_config = plain_sampling()
    blocks = corpus.tokenize(corpus.read_text([]), tokenizer, PROMPT_TOKENS).train
    return teacher, student, blocks[:: len(blocks) // PROMPTS][:PROMPTS]


@pytest.fixture(scope="module", autouse=True)
def unload():
    yield
    load.cache_clear()


def plain_sampling():
    from transformers import GenerationConfig

    # Without an end token no round is cut short after its draft has been examined: transformers
    # shortens the draft, not the outcome, where the text reaches its length.
    return GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0,
        num_assistant_tokens=DRAFTED, num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )  # fmt: skip


def speculate(teacher, draft, prompt, new_tokens):
    """The text, and (end, proposed, accepted) of each round."""
    from transformers.generation.candidate_generator import AssistedCandidateGenerator as Generator

    rounds = []
    original = Generator.update_candidate_strategy

    def record(self, input_ids, scores, num_matches):
        assert not self.logits_processor  # both models sample from all of their distribution
        rounds.append((input_ids.shape[1], scores.shape[1] - 1, int(num_matches)))
        return original(self, input_ids, scores, num_matches)

    ids = prompt[None]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new_tokens}
    with patch.object(Generator, "update_candidate_strategy", record):
        (text,) = teacher.generate(ids, assistant_model=draft, **options)
    return text.tolist(), rounds


def turn_weights(model):
    """Store weights by column: MKL then takes less time for a few tokens, with the same result."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features > module.in_features:
            module.weight.data = module.weight.data.t().contiguous().t()


def speculate_in_worker(directory, number):
    torch.set_num_threads(1)  # at one token a step a second thread gains nothing
    torch.manual_seed(number)
    teacher, student, prompts = load(directory)
    for model in (teacher, student):
        turn_weights(model)
    return speculate(teacher, student, prompts[number], NEW_TOKENS)


def examined_tokens(text, rounds):
    """Where in the text a draft token was examined, (tokens,) bool."""
    examined = torch.zeros(len(text), dtype=torch.bool)
    for end, proposed, accepted in rounds:
        start = end - accepted - 1
        # Behind the accepted tokens stands the rejected one's replacement, or else a token that
        # was not drafted.
        examined[start : start + min(accepted + 1, proposed)] = True
    return examined


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


def test_acceptance_rate_is_that_of_speculative_decoding(smollm2):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(partial(speculate_in_worker, smollm2), range(PROMPTS)))
    examined = torch.stack([examined_tokens(*run) for run in runs])
    texts = torch.tensor([text for text, _ in runs])
    teacher, student, _ = load(smollm2)
    distance, metrics = compare(teacher, student, texts, examined)
    count = int(metrics.counted)
    assert count == examined.sum() >= 1200
    measured = sum(accepted for _, rounds in runs for *_, accepted in rounds) / count
    chance = 1 - distance[examined[:, 1:]].double()
    # Each token is accepted or not by a draw of its own, given its context: the variances add up.
    tolerance = STANDARD_ERRORS * (chance * (1 - chance)).sum().sqrt() / count
    assert abs(measured - metrics.acceptance_rate) < tolerance
    assert abs(measured - metrics.top1_agreement) > tolerance  # a wrong metric would be noticed


def test_a_model_accepts_its_own_draft(smollm2):
    teacher, _, prompts = load(smollm2)
    torch.manual_seed(0)
    text, rounds = speculate(teacher, teacher, prompts[0], 4 * (DRAFTED + 1))
    assert [(proposed, accepted) for _, proposed, accepted in rounds] == [(DRAFTED, DRAFTED)] * 4
    examined = examined_tokens(text, rounds)
    assert examined.sum() == 4 * DRAFTED
    _, metrics = compare(teacher, teacher, torch.tensor([text]), examined[None])
    assert metrics.acceptance_rate == pytest.approx(1.0)
