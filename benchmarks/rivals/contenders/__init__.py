"""One module a contender; ``make(case, module, batch)`` gives its meta-gradient, a callable."""
