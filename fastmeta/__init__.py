"""fastmeta."""
