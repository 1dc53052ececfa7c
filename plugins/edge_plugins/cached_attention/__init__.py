"""Grouped-query attention over a cache of fixed capacity."""
