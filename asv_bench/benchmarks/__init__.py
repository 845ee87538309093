"""asv benchmarks of normkit."""
