"""Tables of results on real data: cells that run once, their costs, and a page of both."""
