"""Benchmarks of fastdistill against its rivals and against the limits of the machine.

``python -m bench`` times and weighs every case, ``python -m bench accuracy`` measures errors,
``python -m bench.gpu`` does all that there is to do on a machine with an NVIDIA GPU.

cases      what is computed: sizes, dtype, divergence, inputs
providers  who computes it: fastdistill, plain torch, other packages, and the bare GEMMs
check      what is right: float64
measure    how long it takes; memory: how much it needs
limits     what the machine can do at best
suite      one case through all of these to rows; report: rows to a table and to CSV
"""
