"""Times weight matching by the `rebasin` package, run by a Python that has it and timm.

It imports nothing of this project, whose packages that Python need not have.
"""

import sys
import time
from importlib import import_module

import timm
import torch

if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    a, b = (timm.create_model(sys.argv[1], num_classes=10).eval() for _ in range(2))
    descent = import_module("rebasin").PermutationCoordinateDescent(a, b, torch.randn(2, 3, 64, 64))
    start = time.perf_counter()
    descent.calculate_permutations()
    print("seconds", time.perf_counter() - start)
