"""Branch and bound: domains, splits, what is bounded, and which domains hold no point."""
