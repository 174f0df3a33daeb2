"""Real servers outside containers, for tests and benchmarks; ``make up`` starts all parts of a deployment."""
