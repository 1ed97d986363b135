"""How fg-clip2-pocket was trained: ``python -m tools.pocket OUTPUT`` (needs the export extra)."""
