"""One adapter per traced operator: what it is made of, in affine nodes and activations."""
