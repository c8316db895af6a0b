"""Loaders of the data sets, one module each."""
