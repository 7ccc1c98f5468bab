"""The benchmarks of `make bench`; most are ratios of two measurements that alternate in one run."""
