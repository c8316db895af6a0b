"""Contenders of several comparisons; ``make(case, module, batch)`` returns a meta-gradient.

A meta-gradient is a callable; its results are with respect to the trainable parameters. A case has
``loss``, ``lr``, ``steps``, ``order`` and ``tasks``.
"""
