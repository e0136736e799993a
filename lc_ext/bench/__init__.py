"""Microbenchmarks for kernel engineers: ``python -m lc_ext.bench``. One suite a module; see docs/benchmarking.md."""
