"""Students that are more than their own layers: what an objective puts between their features and their logits."""
