"""The agents that the reports of the fixture `report_data` are about."""

AGENT_NAMES = [
    "blur_filter",
    "exposure_filter",
    "resolution_filter",
    "exact_duplicate_filter",
    "text_length_filter",
    "answer_consistency_filter",
]
