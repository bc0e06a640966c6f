"""The contenders of `benchmarks/bench_round.py`. Each plays the same federated rounds in a process of its own."""
