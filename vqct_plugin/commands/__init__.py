"""The commands: flags mapped onto one function call each."""

import os

# Before torch is loaded. Threads of OpenMP that have finished otherwise spin while they wait for the others. Alone on a
# machine that is faster, but beside other work they take away the cores that they wait for: a step of the demo's model
# then took 0.67 s, and 0.32 s with threads that sleep (benchmarks/README.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
