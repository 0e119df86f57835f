"""Everything that is to be known about a machine with an NVIDIA GPU, in one command.

``python -m bench.gpu`` builds the checkout for the GPU, tests it and measures it, without a
network and within nine minutes. ``--dry-run`` starts every stage on the CPU, on tiny sizes.

stages    what there is to do, and how long it may take
process   a stage in a process of its own, with a time limit
results   what the stages said: to a JSON file and to tables
worker    the process of a stage, which runs the module of its name:
          build, wheels, tests, sanitizers, ceilings, rows, accuracy, repeats, linear
small     every kernel once on few tokens, for the sanitizers
device    time and memory of a run, on the GPU or the CPU
"""
