"""Examples, a page of code each: `python -m examples.reweight_labels`."""
