"""The commands: flags mapped onto one function call each."""

import os

# Before torch is loaded. Threads of OpenMP that have finished otherwise spin while they wait for the others,
# which on a machine that does anything else takes away the cores that they wait for: a step of the demo's
# model then took 2.8 s with two threads, and 0.21 to 0.48 s with threads that sleep (benchmarks/README.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
