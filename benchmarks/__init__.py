"""Owns the measurements that `make bench` prints: ratios, each of two things timed in one run."""
