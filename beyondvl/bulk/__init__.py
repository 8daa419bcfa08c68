"""Rows by the million: where they come from, what is made of them, where it goes."""
