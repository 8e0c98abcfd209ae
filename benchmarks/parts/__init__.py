"""The parts of the benchmark; each has a function from the settings to the rows of its table."""
