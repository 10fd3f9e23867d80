"""Raw input -> validated records, measurements, prompts. Imports none of the other rooms but `models`."""

import data.cli.interrupts  # noqa: F401  Ctrl-C during the imports that follow is no traceback
