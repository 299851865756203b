"""`python -m benchmarks fidelity`: what each encoding of the targets does to the student's gradient, by loss."""

from benchmarks.fidelity.run import fidelity

__all__ = ["fidelity"]
