"""Speed of ops and of whole meta-steps, as pytest-benchmark modules."""
