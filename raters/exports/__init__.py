"""Raters for evaluation harnesses: what an exported folder holds."""
