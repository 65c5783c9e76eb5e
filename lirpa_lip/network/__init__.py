"""The network as the bounds see it: affine nodes and activations, their values, intervals and rounding."""
