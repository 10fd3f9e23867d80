"""Writes report and model card of a finished run again; see `trainers.report.page`."""

from trainers.report.page import main

if __name__ == "__main__":
    main()
