"""Stand-ins for other meta-learning libraries: the same names, the same results.

Change the import line, ``from fastmeta.compat import learn2learn as l2l`` or
``from fastmeta.compat import higher``, and the rest of a program stays.
"""
