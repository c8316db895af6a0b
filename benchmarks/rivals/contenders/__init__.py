"""One module per contender; ``make(case, module, batch)`` returns its meta-gradient, a callable."""
