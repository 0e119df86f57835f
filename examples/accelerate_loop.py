"""Distil in a training loop of one's own, on as many processes as there are.

pip install fastdistill transformers accelerate
accelerate launch examples/accelerate_loop.py --steps 40
"""

import argparse

import torch
from _tiny import blocks, models
from accelerate import Accelerator
from torch.utils.data import DataLoader

import fastdistill as fd

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=40)
steps = parser.parse_args().steps

accelerator = Accelerator()
teacher, student = models()
teacher.to(accelerator.device).eval()
student.train()
optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
loader = DataLoader(blocks(), batch_size=8, shuffle=True)
student, optimizer, loader = accelerator.prepare(student, optimizer, loader)

for step, batch in zip(range(steps), loader, strict=False):
    ids = batch["input_ids"]
    # Position i predicts token i + 1, and the last one nothing.
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    with accelerator.autocast():
        target = fd.TeacherHead.from_model(teacher, input_ids=ids)
        head = fd.StudentHead.from_model(student, input_ids=ids)
        loss, metrics = head.loss(target, labels, divergence="forward_kl", return_metrics=True)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0 or step == steps - 1:
        accelerator.print(
            f"step {step}: loss {loss.item():.3f}, "
            f"acceptance rate {metrics.acceptance_rate.item():.3f}"
        )
