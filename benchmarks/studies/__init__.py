"""Tables of results on real data, the study of GSL's variants, and the cost of layer patterns."""
