"""`python -m benchmarks fidelity`: `kdpipe fidelity` on a teacher of our own, against other formats and online."""
