"""Distil with the Trainer of Lightning.

pip install fastdistill transformers lightning
python examples/lightning_module.py --steps 40
"""

import argparse

from _tiny import blocks, models
from lightning import Trainer
from torch.optim import AdamW
from torch.utils.data import DataLoader

from fastdistill.integrations.lightning import DistillationModule

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=40)
steps = parser.parse_args().steps

teacher, student = models()
examples = blocks()
training = DataLoader(examples[64:], batch_size=4, shuffle=True)
validation = DataLoader(examples[:64], batch_size=8)

module = DistillationModule(
    student,
    teacher,
    loss_options={"divergence": "reverse_kl"},
    optimizer=lambda parameters: AdamW(parameters, lr=3e-3),
)
trainer = Trainer(
    max_steps=steps, accumulate_grad_batches=2, logger=False, enable_checkpointing=False
)
(before,) = trainer.validate(module, validation)
trainer.fit(module, training)
(after,) = trainer.validate(module, validation)
print(f"KL(student || teacher): {before['val_loss']:.3f} -> {after['val_loss']:.3f}")
