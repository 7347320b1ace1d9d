"""How noise becomes a latent: sigma schedules, solvers, guidance and prompt files. Knows no family and no model."""
