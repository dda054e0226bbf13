"""Everything that knows a tensor: networks, MFM, self-training, scores, the round. Importing this imports no torch."""

import os

# OpenMP threads that wait for each other burn their core by default. Rounds, serving and other programs share the
# cores of a machine, and then two spinning threads are slower than one: measured on 2 busy cores, a convolution's
# forward and backward took 13-25 s with spinning threads and 2.5-6.7 s with sleeping ones. It must be set before torch
# is loaded; a value in the environment wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
