"""prefiere: align language models with human preferences."""
