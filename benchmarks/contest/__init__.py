"""`python -m benchmarks losses`: one student, one cache, one budget, and every loss in turn."""
