"""What is known of transformers' models: their LM head, and their decoder over shared prompts."""
