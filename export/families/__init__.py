"""Families of models, each with the code that exports it."""
