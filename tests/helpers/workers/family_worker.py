"""Runs a program for the tests of all families, `family_worker.py -m MODULE ...`: as `python -m`, but for two things.

No report is drawn, which takes longer than all else that a short run does. And on CPUs with AVX-512 BF16,
bitsandbytes packs 4-bit weights of a model that generates: its scales are rounded, and a layer that is not a multiple
of 64 wide, as those of tiny models, raises; here it does not pack them.
"""

import runpy
import sys

import bitsandbytes.nn.modules

from trainers.report import publishing

if __name__ == "__main__":
    bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
    publishing.write_report = lambda *args, **kwargs: None
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
