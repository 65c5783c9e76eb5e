"""Bounds of the Clarke Jacobian over a region, and constants from them."""
