"""The C library, libfgclip_rt, from Python: its patches for the model, and its answers for a check of parity."""
