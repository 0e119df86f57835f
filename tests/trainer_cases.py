"""Tiny models and uneven examples for DistillationTrainer, and a Trainer that it must agree with."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import fastdistill as fd
from fastdistill.integrations._causal import next_token_labels
from fastdistill.integrations.transformers import DistillationTrainer

V, LENGTHS = 97, (9, 4, 7, 2, 8, 3, 9, 5)
LONGEST = max(LENGTHS)
OPTIONS = {"divergence": "forward_kl", "temperature": 2.0, "soft_weight": 0.7, "hard_weight": 0.3}
AVERAGED = (
    "soft_loss", "hard_loss", "forward_kl", "reverse_kl", "acceptance_rate", "top1_agreement",
    "student_entropy", "teacher_entropy",
)  # fmt: skip


def llama(seed, vocab=V):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3,
            max_position_embeddings=1024,
        )
    )  # fmt: skip


def example(length, index):
    """A text of ``length`` tokens, padded; its first two labels do not count either."""
    ids = torch.randint(0, V, (LONGEST,), generator=torch.Generator().manual_seed(index))
    inside = torch.arange(LONGEST) < length
    labels = ids.where(inside, -100)
    labels[:2] = -100
    return {"input_ids": ids, "attention_mask": inside.long(), "labels": labels}


EXAMPLES = [example(length, index) for index, length in enumerate(LENGTHS)]
BATCH = {name: torch.stack([e[name] for e in EXAMPLES]) for name in EXAMPLES[0]}


def logits_loss(student, teacher, batch):
    """The loss of each token, and which of them count: from logits, as one writes it by hand."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"][:, 1:].flatten()
    with torch.no_grad():
        teacher_logits = teacher(**inputs).logits[:, :-1].flatten(0, 1).float()
    student_logits = student(**inputs).logits[:, :-1].flatten(0, 1).float()
    p, q = (logits.div(2.0).log_softmax(-1) for logits in (teacher_logits, student_logits))
    soft = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    hard = torch.nn.functional.cross_entropy(student_logits, labels, reduction="none")
    return 0.7 * soft + 0.3 * hard, labels != -100


class LogitsTrainer(Trainer):
    """The loss of OPTIONS from logits."""

    loss_is_scaled_for_ga = True

    def __init__(self, *, teacher, **arguments):
        super().__init__(**arguments)
        self.teacher = teacher.eval()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self.accelerator.autocast():
            rows, counted = logits_loss(model, self.teacher, inputs)
        loss = rows[counted].sum() / num_items_in_batch
        return (loss, {}) if return_outputs else loss


def make(directory, trainer=DistillationTrainer, *, student=None, batch=2, extra=None, **arguments):
    options = {"loss_options": OPTIONS} if trainer is DistillationTrainer else {}
    settings = {
        "max_steps": 3, "learning_rate": 0.05, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "max_grad_norm": 0.0,
        "optim": "sgd", "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential",
        "per_device_eval_batch_size": 4,
    }  # fmt: skip
    return trainer(
        teacher=llama(1),
        model=llama(0) if student is None else student,
        args=TrainingArguments(
            str(directory), per_device_train_batch_size=batch, **{**settings, **arguments}
        ),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES,
        **options,
        **(extra or {}),
    )


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained(*arguments, **keywords):
    trainer = make(*arguments, **keywords)
    trainer.train()
    return losses(trainer), weights(trainer), trainer


def expected_metrics(model, teacher, batch=BATCH):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        student_logits, teacher_logits = (m.eval()(**inputs).logits for m in (model, teacher))
    labels = next_token_labels(batch["labels"])
    return fd.distillation_loss(
        student_logits, teacher_logits, labels, return_metrics=True, **OPTIONS
    )
