"""Training of fg-clip2-pocket: ``python -m tools.pocket OUTPUT`` (needs the export extra)."""
