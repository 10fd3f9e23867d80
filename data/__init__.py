"""Raw input -> validated records, measurements, prompts. Imports none of the other rooms."""

import data.cli.interrupts  # noqa: F401  Ctrl-C during the imports that follow is no traceback
