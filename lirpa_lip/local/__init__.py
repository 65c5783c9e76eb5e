"""Local Lipschitz bounds: rates layer by layer, and how far rows can move."""
