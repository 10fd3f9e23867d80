"""Data-quality reports: pools with known damages, what is measured about them, and the sentences that say so."""
