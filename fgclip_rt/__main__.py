"""``python -m fgclip_rt``, the same as ``fgclip-rt``."""

from .cli import main

if __name__ == "__main__":
    main()
