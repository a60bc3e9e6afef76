"""Here so that every test can `from tiny import tokenizer, model`: pytest puts this folder on the path."""
