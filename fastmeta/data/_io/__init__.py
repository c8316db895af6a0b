"""Reading of archives, pickles and images; caching; errors that name the file."""
