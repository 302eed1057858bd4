"""Evaluation: accuracy, steadiness and robustness. `roadmask eval`."""
