"""Probes of frozen encoders: weighted kNN, linear, ridge, with baselines and intervals clustered by original."""
