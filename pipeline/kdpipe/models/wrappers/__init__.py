"""Students that are more than their own layers: what a loss puts between their features and their logits."""
