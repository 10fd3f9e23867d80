"""Messages of libraries that tell a user nothing: each is named here, with the reason, and all others are shown."""

import logging
import warnings

OLDER_NAMES = r"`(is_)?gradient_checkpointing\w*` is deprecated"
"""transformers calls it activation checkpointing since 5.23. TRL 1.16 sets and calls it by the older name, the only
one that all supported versions of both have."""


class _LeavesOut(logging.Filter):
    """Takes away the messages that begin with a text."""

    def __init__(self, beginning: str):
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.beginning)


USELESS_LOGS = {
    # An optional kernel for 4 bits on a CPU: bitsandbytes has its own for the same job.
    "bitsandbytes.backends.cpu.ops": _LeavesOut("Failed to load CPU gemm_4bit_forward"),
    # On a machine without a GPU, where there is nothing to detect.
    "DeepSpeed": _LeavesOut("Setting accelerator to CPU"),
}
"""Name of a logger -> what takes its useless message away."""


def leave_out_noise() -> None:
    """Takes the messages above away; before the libraries are imported, some of which write them then."""
    warnings.filterwarnings("ignore", message=OLDER_NAMES, category=FutureWarning)
    for name, useless in USELESS_LOGS.items():
        logging.getLogger(name).addFilter(useless)
