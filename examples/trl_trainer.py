"""Distil on-policy with TRL's DistillationTrainer: one import is another.

pip install fastdistill trl
python examples/trl_trainer.py --steps 20
"""

import argparse
import tempfile

from _tiny import documentation, models, tokenizer
from datasets import Dataset
from trl import DistillationConfig

from fastdistill.integrations.trl import DistillationTrainer  # in place of: from trl import ...

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
steps = parser.parse_args().steps

teacher, student = models()
prompts = [{"prompt": line} for line in documentation().splitlines() if len(line) > 40]

with tempfile.TemporaryDirectory() as directory:
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(
            directory,
            beta=1.0,  # KL(student || teacher), of what the student wrote itself
            max_completion_length=16,
            max_steps=steps,
            learning_rate=3e-3,
            per_device_train_batch_size=8,
            logging_steps=max(steps // 4, 1),
            save_strategy="no",
            report_to="none",
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(prompts[16:]),
        eval_dataset=Dataset.from_list(prompts[:16]),
        processing_class=tokenizer(),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
print(f"KL(student || teacher): {before['eval_reverse_kl']:.3f} -> {after['eval_reverse_kl']:.3f}")
