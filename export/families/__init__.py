"""Families of models: what each needs to be exported."""
