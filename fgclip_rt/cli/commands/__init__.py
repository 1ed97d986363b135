"""One module a command: each checks what it is given, loads, asks, and says the answer."""
