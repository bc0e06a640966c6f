"""The LM head in blocks of rows, for the ops that never hold all logits."""
