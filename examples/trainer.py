"""Distil with the Trainer of transformers.

pip install fastdistill transformers accelerate
python examples/trainer.py --steps 40
"""

import argparse
import tempfile

from _tiny import blocks, models
from transformers import TrainingArguments

from fastdistill.integrations.transformers import DistillationTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=40)
steps = parser.parse_args().steps

teacher, student = models()
examples = blocks()

with tempfile.TemporaryDirectory() as directory:
    trainer = DistillationTrainer(
        teacher=teacher,
        loss_options={"divergence": "forward_kl", "soft_weight": 0.9, "hard_weight": 0.1},
        model=student,
        args=TrainingArguments(
            directory,
            max_steps=steps,
            learning_rate=3e-3,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            logging_steps=max(steps // 4, 1),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=examples[64:],
        eval_dataset=examples[:64],
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
print(f"KL(teacher || student): {before['eval_forward_kl']:.3f} -> {after['eval_forward_kl']:.3f}")
