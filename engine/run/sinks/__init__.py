"""Consumers of a run's events that send its metrics to other programs."""
