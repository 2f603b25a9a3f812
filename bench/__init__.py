"""Benchmarks of fastgates against its peers; see ``bench/README.md``."""
