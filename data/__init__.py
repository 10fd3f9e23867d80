"""Raw input -> validated records, measurements, prompts. Imports none of the other rooms but `models`."""
