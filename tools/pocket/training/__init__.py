"""How fg-clip2-pocket was trained: ``python -m fgclip_rt.pocket.training OUTPUT`` (needs the export extra)."""
