"""How this project makes its own page of benchmarks: ``make bench``. It is not installed."""
