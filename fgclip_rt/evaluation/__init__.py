"""Measures of a bundle's answers, and the data that they are taken on."""
