"""`vlm-posttrain COMMAND ...`, which `python -m vlm_posttrain` is too.

Launchers start it once more, in every process of a run.
"""

import importlib.metadata
import sys
from collections.abc import Sequence

from vlm_posttrain.import_path import put_current_folder_last

put_current_folder_last()

from data.cli.commands import command
from data.cli.help import NAME
from data.cli.interrupts import end_quietly
from vlm_posttrain.commands import help_text, run

sys.excepthook = end_quietly


@command(shares_work=True)
def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
    elif words[0] == "--version":
        sys.stdout.write(f"{NAME} {importlib.metadata.version(NAME)}\n")
    else:
        run(words[0], words[1:])


if __name__ == "__main__":
    main()
