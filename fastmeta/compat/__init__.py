"""Drop-in replacements for other meta-learning libraries.

Import `learn2learn` or `higher` from `fastmeta.compat`; the rest of a program stays the same,
and so do its results.
"""
