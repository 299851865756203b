"""`python -m benchmarks objectives`: one student, one cache, one budget, and every objective in turn."""
