"""Drop-in replacements for other meta-learning libraries.

Import `learn2learn`, `higher` or `torchopt` from `fastmeta.compat`; the rest of a program stays the
same, and so do its results.
"""
