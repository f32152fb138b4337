"""A base from scratch: VQ tokenizer, text tokenizer, language model."""
