"""What DistillationTrainer logs, returns from an evaluation, and refuses."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs fastdistill[distill]")
pytest.importorskip("accelerate", reason="needs fastdistill[distill]")

from trainer_cases import (
    AVERAGED,
    BATCH,
    EXAMPLES,
    LONGEST,
    V,
    expected_metrics,
    make,
    trained,
)

from fastdistill.integrations._causal import MetricSums, next_token_labels
from fastdistill.integrations.transformers import DistillationTrainer

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")


# ---- logs and evaluation --------------------------------------------------------------------------


def test_metrics_are_averages_over_the_tokens_since_the_last_log(tmp_path):
    arguments = {"learning_rate": 0.0, "max_steps": 4, "logging_steps": 2, "batch": 1}
    _, _, trainer = trained(tmp_path, gradient_accumulation_steps=2, **arguments)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for log, part in zip(logs, (slice(0, 4), slice(4, 8)), strict=True):
        batch = {name: values[part] for name, values in BATCH.items()}
        _, expected = expected_metrics(trainer.model, trainer.teacher, batch)
        assert log["counted"] == expected.counted
        for name in AVERAGED:
            assert log[name] == pytest.approx(getattr(expected, name).item(), rel=1e-5), name


def test_metrics_are_added_without_reading_them():
    unreadable = {
        "counted": torch.ones((), device="meta"),
        "soft_loss": torch.ones((), device="meta"),
    }
    sums = MetricSums()
    sums.add(unreadable)
    sums.add(unreadable, num_items=torch.ones((), device="meta"))
    with pytest.raises((NotImplementedError, RuntimeError)):
        sums.take(lambda tensor: tensor)


def test_averages_are_over_tokens_and_begin_again():
    sums = MetricSums()
    values = {"counted": torch.tensor(3), "soft_loss": torch.tensor(2.0)}
    sums.add(values)
    sums.add(values, num_items=torch.tensor(6))
    assert sums.take(lambda tensor: tensor) == {"soft_loss": 3.0, "counted": 6.0}
    assert sums.take(lambda tensor: tensor) == {}


def test_evaluation_reports_loss_and_metrics(tmp_path):
    trainer = make(tmp_path)
    trainer.compute_loss(trainer.model.eval(), BATCH)  # not a part of the evaluation
    found = trainer.evaluate()
    _, expected = expected_metrics(trainer.model, trainer.teacher)
    assert found["eval_counted"] == expected.counted
    for name in AVERAGED:
        assert found[f"eval_{name}"] == pytest.approx(getattr(expected, name).item(), rel=1e-5)
    # Trainer averages the losses of batches, whatever their numbers of tokens.
    halves = [{n: v[part] for n, v in BATCH.items()} for part in (slice(0, 4), slice(4, 8))]
    parts = [expected_metrics(trainer.model, trainer.teacher, half)[0] for half in halves]
    assert found["eval_loss"] == pytest.approx(sum(parts).item() / 2, rel=1e-5)
    assert trainer.evaluate()["eval_counted"] == expected.counted  # not twice as many
    assert trainer.state.log_history[0]["eval_forward_kl"] == found["eval_forward_kl"]


def test_evaluation_during_training_leaves_the_training_metrics_alone(tmp_path):
    once, _, plain = trained(tmp_path)
    again, _, evaluated = trained(tmp_path, eval_strategy="steps", eval_steps=1)
    assert once == again
    logs = [
        [entry["forward_kl"] for entry in trainer.state.log_history if "loss" in entry]
        for trainer in (plain, evaluated)
    ]
    assert logs[0] == logs[1]
    assert sum("eval_forward_kl" in entry for entry in evaluated.state.log_history) == 3


def test_logits_are_made_for_who_asks(tmp_path):
    trainer = make(tmp_path)
    assert trainer.prediction_step(trainer.model, BATCH, True)[1:] == (None, None)
    loss, logits, labels = trainer.prediction_step(trainer.model, BATCH, False)
    assert loss == pytest.approx(trainer.prediction_step(trainer.model, BATCH, True)[0])
    torch.testing.assert_close(labels, BATCH["labels"])
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(logits, trainer.model(**inputs).logits)
    assert trainer.predict(EXAMPLES).predictions.shape == (8, LONGEST, V)


def test_compute_metrics_gets_logits(tmp_path):
    seen = {}

    def compute_metrics(prediction):
        seen["logits"] = prediction.predictions.shape
        return {"answer": 42}

    found = make(tmp_path, extra={"compute_metrics": compute_metrics}).evaluate()
    assert seen["logits"] == (8, LONGEST, V)
    assert found["eval_answer"] == 42


def test_compute_loss_returns_the_metrics_as_outputs(tmp_path):
    trainer = make(tmp_path)
    loss, outputs = trainer.compute_loss(trainer.model.eval(), BATCH, return_outputs=True)
    expected, metrics = expected_metrics(trainer.model, trainer.teacher)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(outputs["forward_kl"], metrics.forward_kl, rtol=1e-5, atol=0)


def test_aligned_labels_are_taken_where_they_are_given(tmp_path):
    trainer = make(tmp_path)
    shifted = {**BATCH, "shift_labels": next_token_labels(BATCH["labels"])}
    nonsense = {**shifted, "labels": torch.zeros_like(BATCH["labels"])}
    found = [trainer.compute_loss(trainer.model, b) for b in (BATCH, shifted, nonsense)]
    assert found[0] == found[1] == found[2]


# ---- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"divergance": "forward_kl"}, TypeError),
        ({"reduction": "sum"}, TypeError),
        ({"student_softcap": 30.0}, TypeError),
        ({"divergence": "forward"}, ValueError),
        ({"temperature": 0.0}, ValueError),
        ({"chunk_size": 0}, ValueError),
    ],
)
def test_wrong_options_are_refused_at_construction(options, error):
    with pytest.raises(error, match=next(iter(options))):
        DistillationTrainer(teacher=None, loss_options=options)


def test_settings_that_would_have_no_effect_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no compute_loss_func"):
        make(tmp_path, extra={"compute_loss_func": print})
    with pytest.raises(ValueError, match="label smoothing"):
        make(tmp_path, label_smoothing_factor=0.1)
    trainer = make(tmp_path)
    trainer.args._n_gpu = 2
    with pytest.raises(ValueError, match="one process drives 2 GPUs"):
        trainer._check_setting()
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="no FSDP"):
        trainer._check_setting()


def test_examples_must_hold_labels(tmp_path):
    trainer = make(tmp_path)
    with pytest.raises(ValueError, match=r"must hold labels, got \['input_ids'\]"):
        trainer.compute_loss(trainer.model, {"input_ids": BATCH["input_ids"]})
