"""Policies and scorers. Imports none of the other rooms but `data`."""

import data.cli.interrupts  # noqa: F401  Ctrl-C during the imports that follow is no traceback
from data.cli.library_noise import leave_out_noise

leave_out_noise()
