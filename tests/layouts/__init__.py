"""Names and shapes of public checkpoints (`*.json.gz`), and the check that our full-size models have exactly these."""
