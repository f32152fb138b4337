"""One file a family of models, and the table of them."""
