"""The checkpoint that ships with the package, as package data: weights and configurations, no code."""
