"""The page of a report, and the comparison of ``vqct-demo``."""
