"""Reading of archives, pickles and images, caching, and errors that name the file."""
