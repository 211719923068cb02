"""Submits, follows and cancels tasks; knows nothing of HTTP."""
