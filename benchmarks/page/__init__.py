"""This project's own page of benchmarks: ``make bench``. It is not installed."""
