"""`python -m benchmarks losses`: one student with every loss, from one cache, with the same steps."""
