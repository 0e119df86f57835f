"""Benchmarks of fastdistill against its rivals and against the limits of the machine.

``python -m bench --help`` lists what there is to measure; ``python -m bench.gpu`` does all that
there is to do on a machine with an NVIDIA GPU.

cases      what is computed: sizes, dtype, direction; matrix: which cases there are
inputs     its tensors; text: those of real models on real text
provider   who computes it; providers: fastdistill and plain torch; packages: others
gemms      the bare GEMMs, and a prediction of them; limits: memory and exponentials
check      what is right: float64
measure    how long it takes; memory: how much it needs
suite      one case through all of these to rows; report: rows to a table and to CSV
speed, scaling, compare, accuracy, plot, readme: the commands
"""
