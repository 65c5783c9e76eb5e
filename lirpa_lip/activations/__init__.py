"""What the bounds know of elementwise functions: values, slopes, ranges, and lines around them."""
