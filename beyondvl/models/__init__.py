"""Models: from files to programs, and what a caller can do with them."""
