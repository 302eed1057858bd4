"""Footage of a fleet over many machines: where it lies, who works on what, and what is done."""
