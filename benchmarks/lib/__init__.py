"""What several benchmarks share: networks and data, attacks, the table of results, and where it was measured."""
