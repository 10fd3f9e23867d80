"""Runs a program with 4-bit weights on a CPU, `four_bit_worker.py -m MODULE ...`.

On CPUs with AVX-512 BF16, bitsandbytes packs the weights of a model that generates: its scales are rounded, and a
layer that is not a multiple of 64 wide, as those of tiny models, raises.
"""

import runpy
import sys

import bitsandbytes.nn.modules

if __name__ == "__main__":
    bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
