"""Local faults on demand: what fails, and when."""
