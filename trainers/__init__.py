"""One file a method, top to bottom: config dataclass, Trainer subclass, main(). Uses all other rooms."""

import data.cli.interrupts  # noqa: F401  Ctrl-C during the imports that follow is no traceback
from data.cli.library_noise import leave_out_noise

leave_out_noise()
